"""What a client says of itself, and what can be known of one that says nothing any more."""

from pathlib import Path

import pytest

from fedpeft_client import events
from fedpeft_client.events import Event
from fedpeft_client.policy_file import template
from fedpeft_client.state_folder import Membership, StateFolder, Status
from fedpeft_client.status import Overview, StatusFile
from tests.federated.client_rounds import (
    CLIENT,
    PLAN_DIGEST,
    RUN,
    Client,
    make_client,
    plan_for,
    terms_for,
)


@pytest.fixture
def client(tmp_path: Path, tiny_bert: Path) -> Client:
    return make_client(tmp_path / "rows", tiny_bert)


@pytest.fixture
def folder(client: Client, tmp_path: Path) -> StateFolder:
    made = StateFolder.create(tmp_path / "state", template())
    made.join(
        Membership(
            client_id=CLIENT,
            federation="ab" * 32,
            server="localhost:7443",
            ledger=str(client.folder / "ledger.db"),
            data=str(client.folder / "rows.jsonl"),
            dataset=client.rows.dataset,
            num_rows=client.rows.num_examples,
        )
    )
    return made


def event(kind: str, number: int | None = None, **body: object) -> Event:
    return Event(kind=kind, client_id=CLIENT, run_id=RUN, round=number, body=body)


def said(folder: StateFolder) -> Status:
    status = folder.status()
    assert status is not None
    return status


def test_status_follows_what_happens(folder: StateFolder) -> None:
    file = StatusFile(folder)
    assert (said(folder).activity, said(folder).connected) == ("starting", False)
    file(event(events.CONNECTED))
    assert (said(folder).activity, said(folder).connected) == ("waiting", True)
    file(event(events.ROUND_STARTED, 2, num_rounds=5))
    file(event(events.CONNECTING))
    training = said(folder)
    assert (training.activity, training.connected) == ("training", False)
    assert (training.run_id, training.round, training.num_rounds) == (RUN, 2, 5)
    file(event(events.CONNECTED))
    assert said(folder).activity == "training"
    file(event(events.ROUND_FINISHED, 2, num_rounds=5, epsilon_spent=1.5))
    update = said(folder).last_update
    assert update is not None
    assert (update.run_id, update.round, update.epsilon_spent) == (RUN, 2, 1.5)
    file(event(events.NOTE, text="x" * 5000))
    file(event(events.REFUSED, 3, code="policy"))
    assert len(said(folder).last_note or "") == 1000
    file(event(events.STOPPING))
    file(event(events.STOPPED))
    assert (said(folder).activity, said(folder).connected) == ("stopped", False)
    # The next process goes on from what was known.
    StatusFile(folder)
    assert (said(folder).activity, said(folder).last_update) == ("starting", update)


def test_an_overview_reads_the_ledger_itself(
    client: Client, folder: StateFolder, tiny_bert: Path
) -> None:
    terms = terms_for(tiny_bert)
    adapter = client.adapter(terms)
    client.round().train(plan_for(terms, adapter), adapter, PLAN_DIGEST)
    StatusFile(folder)(event(events.CONNECTED))
    with folder.running():
        overview = Overview.of(folder)
        assert (overview.running, overview.connected) == (True, True)
    assert overview.balance == client.ledger.balance(client.rows.dataset)
    assert overview.problems == ()
    # Killed: the file still says that it is connected, and nobody is there.
    overview = Overview.of(folder)
    assert (overview.running, overview.connected) == (False, False)
    assert overview.activity == "not running"


def test_what_cannot_be_read_is_told_and_the_rest_shown(
    client: Client, folder: StateFolder
) -> None:
    folder.policy.write_text("max_rounds = 'many'", encoding="utf-8")
    client.ledger.close()
    (client.folder / "ledger.db").unlink()
    overview = Overview.of(folder)
    assert (overview.policy, overview.balance) == (None, None)
    assert overview.membership is not None
    told = "; ".join(overview.problems)
    assert "max_rounds" in told
    assert "there is no ledger" in told
    (folder.path / "membership.json").write_text("{}", encoding="utf-8")
    assert Overview.of(folder).membership is None
