"""Removal jobs at the client: whose rows, which model, and what the owner's policy allows."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from safetensors.torch import load, save

from fedpeft.errors import ConfigError, DataError, LedgerError, PolicyError, ProtocolError
from fedpeft.federated.tombstones import Tombstones
from fedpeft.identity.credentials import Credentials
from fedpeft.identity.roles import Role
from fedpeft.ledger import Ledger
from fedpeft.models.sources import read_table
from fedpeft.remote import Connection
from fedpeft.remote.removal_records import Removal, RemovalJob
from fedpeft.types import tensor_digest
from fedpeft.unlearning.order import JobOrder, JobResult
from fedpeft_client.join import federation_of
from fedpeft_client.removals import Asked, ClientRemovals
from fedpeft_client.state_folder import Membership, StateFolder
from tests.federated.client_rounds import CLIENT, DELTA, base_digest, first_adapter, terms_for
from tests.federated.client_rounds import policy_for as a_policy
from tests.server.holders import Holders
from tests.tiny_models import write_rows

REQUEST = "00000000000000dd"
SETTINGS = {"unlearning": {"num_epochs": 2, "warmup_epochs": 0.5}}
PRIVATE = {"private": {"epsilon": 8.0, "num_steps": 3, "sampling_prob": 0.5}}


@dataclass
class Server:
    """A connection that gives out one job, and keeps what is sent."""

    order: JobOrder
    adapter: bytes
    sent: list[tuple[bytes, Mapping[str, Any], Mapping[str, bytes]]] = field(default_factory=list)

    def get_removal_job(self, request_id: str) -> RemovalJob:
        return RemovalJob(order_json=self.order.to_json(), adapter=self.adapter)

    def submit_successor(
        self, request_id: str, adapter: bytes, result: Mapping[str, Any], files: Mapping[str, bytes]
    ) -> Removal:
        assert request_id == REQUEST
        self.sent.append((adapter, result, files))
        return cast(Removal, "as the server has it")


@dataclass
class Site:
    """An owner's machine, and a server."""

    folder: StateFolder
    credentials: Credentials
    data: Path
    server: Server

    def opened(self) -> ClientRemovals:
        connection = cast(Connection, self.server)
        return ClientRemovals(connection, self.credentials, self.folder, lambda phase, share: None)

    def removals(self, **otherwise: Any) -> ClientRemovals:
        """After the owner asked for what the server now gives out, unless told otherwise."""
        opened, order = self.opened(), self.server.order
        asked = {
            "method": order.method,
            "private": order.is_private,
            "num_records": order.num_records,
            "settings": order.settings | {"precisions": ["fp32"]},
        }
        opened.remember(REQUEST, Asked.model_validate(asked | otherwise))
        return opened

    def write_policy(self, **fields: Any) -> None:
        model = Path(self.server.order.run_config["model"]["name"])  # type: ignore[index, call-overload, arg-type]
        lines = [f"{name} = {json.dumps(value)}" for name, value in fields.items()]
        digest = self.server.order.base_digest
        lines += ['device = "cpu"', f"[base_models.{digest}]", f'name = "{model}"']
        self.folder.policy.write_text("\n".join(lines) + "\n")

    def rejoin(self, **changed: Any) -> None:
        before = self.folder.membership()
        assert before is not None
        self.folder.join(before.model_copy(update=changed))


@pytest.fixture
def site(tmp_path: Path, tiny_bert: Path) -> Site:
    credentials = Credentials.in_folder(Holders(tmp_path).issue(CLIENT, Role.DATA_OWNER))
    folder = StateFolder.create(tmp_path / "state", "")
    data = write_rows(tmp_path / "rows.jsonl", 24, seed=1)
    table = read_table(str(data), [])
    with Ledger.open(folder.ledger) as ledger:
        dataset = ledger.register(table.records())
        ledger.set_budget(dataset, epsilon=20.0, delta=DELTA)
    folder.join(
        Membership(
            client_id=CLIENT,
            federation=federation_of(credentials),
            server="localhost",
            ledger=str(folder.ledger),
            data=str(data),
            dataset=dataset,
            num_rows=table.num_rows,
        )
    )
    Tombstones(folder.tombstones).add(REQUEST, table.take([0, 5, 7]).records())
    terms = terms_for(tiny_bert)
    order = JobOrder.model_validate(
        {
            "request_id": REQUEST,
            "run_config": {
                "model": terms.model.model_dump(mode="json") | {"name": str(tiny_bert)},
                "data": {"test": "held by the coordinator"},
                "adapter": terms.adapter.model_dump(mode="json"),
                "privacy": {"delta": DELTA},
            },
            "base_digest": base_digest(tiny_bert),
            "labels": ("cold", "warm"),
            "method": "loku",
            "num_records": 3,
            "settings": SETTINGS,
            "precisions": ("fp32",),
            "seed": 1,
        }
    )
    adapter = bytes(save(first_adapter(terms, a_policy(tiny_bert))))
    made = Site(folder, credentials, data, Server(order, adapter))
    made.write_policy(allow_without_privacy=True)
    return made


def private(site: Site) -> None:
    change = {"guarantee": "charged", "settings": PRIVATE}
    site.server.order = site.server.order.model_copy(update=change)


def elsewhere(site: Site) -> None:
    """The coordinator names a place of its own for the model."""
    config = dict(site.server.order.run_config)
    config["model"] = {**config["model"], "name": "/etc/passwd"}  # type: ignore[dict-item]
    site.server.order = site.server.order.model_copy(update={"run_config": config})


@pytest.mark.parametrize("is_private", [False, True])
def test_a_job_is_done_with_the_owners_model_and_rows(site: Site, is_private: bool) -> None:
    if is_private:
        private(site)
    elsewhere(site)
    done = site.removals().run(REQUEST)
    [(adapter, result, files)] = site.server.sent
    read = JobResult.from_json(json.dumps(result))
    assert read.digest == tensor_digest(load(adapter))
    assert read.parent == tensor_digest(load(site.server.adapter))
    assert "adapter_model.safetensors" in files
    assert (read.gate is None) == is_private
    assert (done.gate is not None) == is_private, done.problem
    if read.gate is not None:
        assert (read.gate.num_forget, read.gate.num_held_out) == (3, 0)
    with Ledger.open(site.folder.ledger) as ledger:
        [balance] = ledger.balances()
    assert balance.num_events == int(is_private)


def test_what_a_private_job_sent_does_not_depend_on_what_is_measured_then(site: Site) -> None:
    private(site)
    first = site.removals().run(REQUEST, measured=False)
    assert first.gate is None
    held_out = read_table(str(write_rows(site.data.parent / "new.jsonl", 12, seed=7)), [])
    again = site.removals().run(REQUEST, held_out=held_out)
    assert again.gate is not None
    assert again.gate.num_held_out == 12
    assert site.server.sent[0] == site.server.sent[1]


def test_what_cannot_be_measured_is_told_and_sent_all_the_same(site: Site) -> None:
    private(site)
    odd = read_table(str(site.data), []).take([0])  # to be forgotten, and held out
    done = site.removals().run(REQUEST, held_out=odd)
    assert done.gate is None
    assert "to be forgotten" in done.problem
    assert len(site.server.sent) == 1


def not_joined(site: Site) -> None:
    (site.folder.path / "membership.json").unlink()


def append(site: Site) -> None:
    with site.data.open("a") as file:
        file.write('{"text": "the sun", "label": "warm"}\n')


def lose_ledger(site: Site) -> None:
    site.folder.ledger.unlink()


CASES: dict[str, tuple[Callable[[Site], None], type[Exception], str]] = {
    "not joined": (not_joined, ConfigError, "has not joined"),
    "another client": (lambda s: s.rejoin(client_id="bank"), ConfigError, "folder of client"),
    "another federation": (lambda s: s.rejoin(federation="0" * 64), ConfigError, "authority"),
    "other rows": (append, DataError, "not those that the client joined with"),
    "other columns": (
        lambda s: s.rejoin(columns=("text",)),
        DataError,
        "not those that the client joined with",
    ),
    "no ledger": (lose_ledger, LedgerError, "missing"),
    "without privacy": (lambda s: s.write_policy(), PolicyError, "allow_without_privacy"),
    "no model": (
        lambda s: s.folder.policy.write_text("allow_without_privacy = true"),
        PolicyError,
        "--allow-model",
    ),
    "another request": (
        lambda s: setattr(
            s.server,
            "order",
            s.server.order.model_copy(update={"request_id": "00000000000000ee"}),
        ),
        ProtocolError,
        "job of removal 00000000000000ee",
    ),
    "no marks": (
        lambda s: (s.folder.tombstones / "rows.json").unlink(),
        DataError,
        "no row here is marked",
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("is_private", [False, True])
def test_what_is_refused_before_anything_is_computed(
    site: Site, case: str, is_private: bool
) -> None:
    change, error, message = CASES[case]
    if is_private:
        private(site)
    change(site)
    if is_private and case == "without privacy":
        site.removals().run(REQUEST, measured=False)
        return
    with pytest.raises(error, match=message):
        site.removals().run(REQUEST)
    assert not site.server.sent


@pytest.mark.parametrize(
    ("what", "otherwise"),
    [
        ("private", {"private": True}),
        ("method", {"method": "npo"}),
        ("number of records", {"num_records": 4}),
        ("settings", {"settings": {"unlearning": {"num_epochs": 3}}}),
    ],
)
def test_an_order_of_another_job_is_not_done(
    site: Site, what: str, otherwise: Mapping[str, Any]
) -> None:
    with pytest.raises(ProtocolError, match=f"not what was asked for.*{what}"):
        site.removals(**otherwise).run(REQUEST)
    assert not site.server.sent


def test_a_server_cannot_take_the_noise_away_or_spend_more(site: Site) -> None:
    """Asked with noise, where the policy would allow a job without."""
    without = site.server.order
    private(site)
    site.removals()
    more = {"private": {"epsilon": 19.0, "num_steps": 3, "sampling_prob": 0.5}}
    for order in (without, site.server.order.model_copy(update={"settings": more})):
        site.server.order = order
        with pytest.raises(ProtocolError, match="not what was asked for"):
            site.opened().run(REQUEST)
    assert not site.server.sent
    with Ledger.open(site.folder.ledger) as ledger:
        [balance] = ledger.balances()
    assert balance.num_events == 0


def test_what_nobody_asked_for_here_is_not_done(site: Site) -> None:
    with pytest.raises(DataError, match="was not asked for"):
        site.opened().run(REQUEST)
    site.removals()
    (site.folder.removals / f"{REQUEST}.json").write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        site.opened().run(REQUEST)


def test_a_request_is_asked_for_once(site: Site) -> None:
    site.removals()
    site.removals()
    with pytest.raises(ConfigError, match="asked for otherwise"):
        site.removals(method="npo")


def test_the_policys_largest_epsilon_is_that_of_a_job_too(site: Site) -> None:
    private(site)
    site.write_policy(max_target_epsilon=7.5)
    with pytest.raises(PolicyError, match=r"private\.epsilon is 8"):
        site.removals().run(REQUEST)


def test_rows_that_another_request_removed_are_in_no_job(site: Site) -> None:
    table = read_table(str(site.data), [])
    Tombstones(site.folder.tombstones).add("another", table.take([1, 2]).records())
    site.removals().run(REQUEST)
    [(_, result, _)] = site.server.sent
    gate = JobResult.from_json(json.dumps(result)).gate
    assert gate is not None
    assert gate.num_retain <= 24 - 3 - 2
