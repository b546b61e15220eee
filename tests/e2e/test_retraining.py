"""Removal by retraining: through the rounds of real clients, whose own marks leave the rows out."""

import pytest

from fedpeft.federated.tombstones import Tombstones
from fedpeft.identity.certificates import read_certificate
from fedpeft.ledger import Ledger
from fedpeft.models.sources import read_table
from fedpeft.registry.manifest import KIND
from fedpeft.registry.trust import RegistryTrust
from fedpeft.remote.records import RunStatus
from fedpeft.remote.removal_records import RemovalState
from fedpeft_client.state_folder import StateFolder
from tests.e2e.federation import NAMES, Federation, Member, Watched
from tests.e2e.removals import GONE, command, deployed, receipt_of, records_of, requesting

pytestmark = pytest.mark.e2e


def num_charges(member: Member, run_id: str) -> int:
    """Reservations of a run in the client's own ledger."""
    with Ledger.open(member.ledger, read_only=True) as ledger:
        [balance] = ledger.balances()
        found = ledger.reservations(balance.fingerprint)
    return sum(reservation.purpose.startswith(f"run {run_id} ") for reservation in found)


def marked(member: Member) -> list[int]:
    rows = read_table(str(member.folder / "rows.jsonl"), [])
    folder = StateFolder(member.folder / "state")
    return Tombstones(folder.tombstones).held(rows.records())


def test_the_rounds_are_trained_again_without_the_rows(standing: Federation) -> None:
    before = deployed(standing, "production", num_rounds=2)
    clinic = standing.clients["clinic"]
    spent = {name: standing.clients[name].spent() for name in NAMES}
    records = records_of(clinic, "gone", 0)
    asking = requesting(standing, clinic, records, "--method", "retrain", "--wait")
    asking.start()
    assert asking.ended() == 0, asking.tail
    assert marked(clinic) == [0, 1, 2]
    [removal] = standing.operator.list_removals("clinic")
    assert removal.state is RemovalState.PUBLISHED
    receipt = receipt_of(standing, clinic, removal.request_id)
    assert (receipt.claim, receipt.method, receipt.measured_by) == ("exact", "retrain", "nobody")
    assert (receipt.guarantee, receipt.gate, receipt.privacy) == ("charged", None, None)
    assert before in receipt.affected
    assert receipt.request.num_records == GONE
    successor = standing.operator.get_adapter("production")
    assert successor.digest == receipt.successor
    run = standing.operator.get_run(successor.run_id)
    assert run.run.status is RunStatus.FINISHED
    assert [len(entry.cohort) for entry in run.rounds] == [3, 3]
    for name in NAMES:
        member = standing.clients[name]
        assert num_charges(member, successor.run_id) == 2
        assert receipt.epsilon[name].epsilon == member.spent() > spent[name]
    # The manifest of a remote run's version is signed, and names who is in it.
    authority = read_certificate(clinic.folder / "authority.cert.pem")
    trust = RegistryTrust.of_authority(authority)
    body = trust.verify(KIND, successor.manifest_json)
    assert [p["client_id"] for p in body["participants"]] == sorted(NAMES)
    for participant in body["participants"]:
        member = standing.clients[participant["client_id"]]
        with Ledger.open(member.ledger, read_only=True) as ledger:
            [balance] = ledger.balances()
        assert participant["dataset"] == balance.fingerprint
        assert float(participant["epsilon"]) == member.spent()


@pytest.mark.slow
def test_a_cancelled_one_stops_its_run_and_nobody_is_charged_further(standing: Federation) -> None:
    before = deployed(standing, "cancelled", num_rounds=30, local_steps=1)
    shop = standing.clients["shop"]
    records = records_of(shop, "gone", 0)
    asking = requesting(standing, shop, records, "--method", "retrain", alias="cancelled")
    asking.start()
    assert asking.ended() == 0, asking.tail
    [removal] = standing.operator.list_removals("shop")
    events = standing.operator.watch_removal(removal.request_id)
    next(event for event in events if event.body.get("state") == "running")
    run_id = next(
        run.run_id
        for run in standing.operator.list_runs()
        if run.name.endswith("retrained") and run.status is not RunStatus.FINISHED
    )
    watched = Watched(standing.operator, run_id, standing.report)
    watched.event("round-finished", round=1)
    cancel = command(standing, shop, "cancel", removal.request_id)
    cancel.start()
    assert cancel.ended() == 0, cancel.tail
    assert watched.ended().run.status is RunStatus.STOPPED
    charges = {name: num_charges(standing.clients[name], run_id) for name in NAMES}
    assert all(1 <= number < 30 for number in charges.values())
    # A later run of the same clients is trained; nothing of the stopped one is any more.
    standing.submit(standing.config(num_rounds=1)).finished()
    assert charges == {name: num_charges(standing.clients[name], run_id) for name in NAMES}
    assert standing.operator.get_adapter("cancelled").digest == before
    assert standing.operator.get_removal(removal.request_id).state is RemovalState.CANCELLED
    assert marked(shop) == [0, 1, 2], "they stay marked"
