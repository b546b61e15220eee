"""From what an owner asks for to a client, without a server."""

from pathlib import Path
from typing import Any

import pytest

from fedpeft.errors import ConfigError, DataError, IdentityError, LedgerError, ModelError
from fedpeft.identity.authority import Authority
from fedpeft.identity.credentials import Credentials
from fedpeft.identity.roles import Role
from fedpeft.models.base_digest import base_digests
from fedpeft_client.join import Joining, JoinRequest, digests_of
from fedpeft_client.policy import AllowedModel, ClientPolicy
from fedpeft_client.simulated import OPERATOR, make_identities, requests, split_rows
from fedpeft_client.state_folder import StateFolder
from fedpeft_client.training import Account
from tests.server.holders import Holders
from tests.tiny_models import write_rows

BUDGET = (6.0, 0.02)


class Registered:
    """A training process that has read the rows."""

    def account(self, client_id: str) -> Account:
        return Account(num_rows=12, dataset="ab" * 32, epsilon=6.0, delta=0.02, spent=0.0)


@pytest.fixture
def holders(tmp_path: Path) -> Holders:
    made = Holders(tmp_path / "holders")
    made.issue("clinic", Role.DATA_OWNER)
    return made


def request(holders: Holders, tmp_path: Path, name: str = "clinic", **fields: Any) -> JoinRequest:
    rows = write_rows(tmp_path / "rows.jsonl", 12, seed=1)
    asked = {
        "server": "localhost",
        "identity": holders.folder / name,
        "state": tmp_path / "state",
        "data": str(rows),
        "budget": BUDGET,
        **fields,
    }
    return JoinRequest(**asked)


def joined(asked: JoinRequest) -> Joining:
    joining = Joining.of(asked)
    joining.register(Registered())  # type: ignore[arg-type]
    return joining


def test_a_first_join_makes_the_folder(holders: Holders, tmp_path: Path) -> None:
    joining = joined(request(holders, tmp_path))
    assert joining.policy == ClientPolicy()
    assert joining.setup.ledger == str(tmp_path / "state" / "ledger.db")
    assert joining.setup.client_id == "clinic"
    membership = StateFolder(tmp_path / "state").membership()
    assert membership is not None
    assert (membership.client_id, membership.num_rows) == ("clinic", 12)


def test_only_a_data_owner_joins(holders: Holders, tmp_path: Path) -> None:
    holders.issue("reader", Role.READER)
    with pytest.raises(IdentityError, match="not that of a data owner"):
        Joining.of(request(holders, tmp_path, "reader"))
    holders.expire("clinic")
    with pytest.raises(IdentityError, match="expired"):
        Joining.of(request(holders, tmp_path))
    with pytest.raises(IdentityError, match="there is no folder"):
        Joining.of(request(holders, tmp_path, "nobody"))
    assert not (tmp_path / "state").exists()


def test_a_folder_stays_with_its_name_federation_and_ledger(
    holders: Holders, tmp_path: Path
) -> None:
    ledger = tmp_path / "state" / "ledger.db"
    joined(request(holders, tmp_path))
    ledger.touch()
    # The same client called at another host is the same client.
    assert joined(request(holders, tmp_path, server="fed.example.org:9")).setup.ledger == str(
        ledger
    )
    holders.issue("bank", Role.DATA_OWNER)
    with pytest.raises(ConfigError, match="is the folder of client 'clinic', this is 'bank'"):
        Joining.of(request(holders, tmp_path, "bank"))
    other = Holders(tmp_path / "other")
    other.issue("clinic", Role.DATA_OWNER)
    with pytest.raises(ConfigError, match=r"another authority; .* the same ledger with --ledger"):
        Joining.of(request(other, tmp_path))
    with pytest.raises(LedgerError, match="does not know what was spent"):
        Joining.of(request(holders, tmp_path, ledger=str(tmp_path / "new.db")))
    ledger.unlink()
    with pytest.raises(LedgerError, match="is missing"):
        Joining.of(request(holders, tmp_path))


def test_a_policy_that_cannot_be_read_stops_it(holders: Holders, tmp_path: Path) -> None:
    folder = joined(request(holders, tmp_path)).folder
    folder.policy.write_text("min_noise_multiplier = -1.0", encoding="utf-8")
    with pytest.raises(ConfigError, match="min_noise_multiplier"):
        Joining.of(request(holders, tmp_path))
    folder.policy.unlink()
    with pytest.raises(ConfigError, match=r"policy\.toml"):
        Joining.of(request(holders, tmp_path))


def test_a_model_is_allowed_by_its_digest_for_each_task_that_it_can_do(
    holders: Holders, tmp_path: Path, tiny_bert: Path, tiny_llama: Path
) -> None:
    encoder, decoder = base_digests(str(tiny_bert)), base_digests(str(tiny_llama))
    assert set(encoder) == {"classification"}
    assert set(decoder) == {"classification", "causal-lm"}
    found = digests_of((str(tiny_bert), str(tiny_llama)))
    assert found == {
        **{digest: AllowedModel(name=str(tiny_bert)) for digest in encoder.values()},
        **{digest: AllowedModel(name=str(tiny_llama)) for digest in decoder.values()},
    }
    with pytest.raises(ModelError, match="there is no model folder"):
        digests_of((str(tmp_path / "nothing"),))


def test_a_split_gives_each_row_to_one_client_and_the_same_one_again(tmp_path: Path) -> None:
    data = str(write_rows(tmp_path / "rows.jsonl", 60, seed=1))

    def split(how: str, **fields: Any) -> dict[str, tuple[int, ...]]:
        return split_rows(
            data, how, **{"num_clients": 3, "label_column": "label", "seed": 0, **fields}
        )

    for how in ("iid", "dirichlet", "dirichlet:0.5"):
        parts = split(how)
        assert sorted(row for rows in parts.values() for row in rows) == list(range(60))
        assert split(how) == parts
    assert split("iid", seed=1) != split("iid")
    assert len(split("column:label", num_clients=2)) == 2
    for how in ("random", "dirichlet:x", "dirichlet:-1", "dirichlet:nan", "files", "column", ""):
        with pytest.raises(ConfigError, match="expected a partition such as"):
            split(how)
    with pytest.raises(DataError, match="no column 'owner'"):
        split("column:owner")


def test_an_authority_at_hand_makes_what_is_missing(tmp_path: Path) -> None:
    root, names = tmp_path / "clients", ["client-00", "client-01"]
    with pytest.raises(ConfigError, match=r"name the authority's folder with --ca"):
        make_identities(root, names, None)
    Authority.create(tmp_path / "ca", "test")
    make_identities(root, names, tmp_path / "ca")
    before = Authority(tmp_path / "ca").issued()
    make_identities(root, names, tmp_path / "ca")
    make_identities(root, names, None)
    assert Authority(tmp_path / "ca").issued() == before
    assert [(entry.name, set(entry.roles)) for entry in before] == [
        ("client-00", {Role.DATA_OWNER}),
        ("client-01", {Role.DATA_OWNER}),
        (OPERATOR, {Role.OPERATOR}),
    ]
    asked = requests(
        {"client-00": (1, 2), "client-01": (0,)},
        server="localhost",
        root=root,
        data="rows.jsonl",
        budget=BUDGET,
        allow_models=(),
    )
    assert [Credentials.in_folder(each.identity).name for each in asked] == names
    assert len({each.state for each in asked}) == 2
