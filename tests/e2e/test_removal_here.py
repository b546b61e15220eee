"""Removal jobs on the owner's machine: real processes, a private adapter, a real ledger, kills."""

import json

import pytest

from fedpeft.dp.accounting import epsilon
from fedpeft.ledger import Ledger
from fedpeft.remote.removal_records import RemovalState
from tests.e2e.federation import DELTA, OFF, Federation
from tests.e2e.removals import (
    command,
    deployed,
    receipt_of,
    records_of,
    requesting,
    reservations,
)

pytestmark = pytest.mark.e2e


def test_a_private_job_that_is_killed_is_charged_once_and_published(standing: Federation) -> None:
    adapter = deployed(standing, "production")
    clinic = standing.clients["clinic"]
    records = records_of(clinic, "first", 0)
    before = clinic.spent()
    asking = requesting(standing, clinic, records, "--private", "--set", "private.num_steps=100")
    asking.start()
    request_id = asking.line(r"^removal [0-9a-f]{16}$").split()[1]
    asking.line("steps [1-9]")
    asking.kill()
    [paid] = reservations(clinic, f"removal {request_id} ")
    assert clinic.spent() > before

    again = command(
        standing, clinic, "run", request_id, "--state", str(clinic.folder / "state"), "--json"
    )
    again.start()
    assert again.ended() == 0, again.tail
    assert any("For you alone" in line for line in again.lines)
    list(standing.operator.watch_removal(request_id))  # until it has ended
    removal = standing.operator.get_removal(request_id)
    assert removal.state is RemovalState.PUBLISHED, removal.reason
    assert reservations(clinic, f"removal {request_id} ") == [paid]

    receipt = receipt_of(standing, clinic, request_id)
    assert (receipt.guarantee, receipt.claim, receipt.gate) == ("charged", "approximate", None)
    assert receipt.privacy is not None
    assert receipt.privacy.event == paid.event
    assert receipt.privacy.epsilon == epsilon([paid.event], DELTA)
    assert receipt.epsilon["clinic"].epsilon == receipt.privacy.epsilon_spent == clinic.spent()
    assert receipt.epsilon["clinic"].delta == DELTA
    assert receipt.affected[0] != receipt.successor
    assert adapter in receipt.affected
    served = standing.operator.get_adapter("production")
    assert served.digest == receipt.successor
    manifest = json.loads(served.manifest_json)["body"]
    own = {p["client_id"]: p["epsilon"] for p in manifest["participants"]}
    assert float(own["clinic"]) == clinic.spent()
    assert manifest["guarantee"] == "intact"


@pytest.mark.slow
def test_a_budget_that_is_too_small_releases_nothing(standing: Federation) -> None:
    deployed(standing, "small")
    shop = standing.clients["shop"]
    records = records_of(shop, "too-dear", 0)
    before = shop.spent()
    with Ledger.open(shop.ledger) as ledger:
        [balance] = ledger.balances()
        ledger.set_budget(balance.fingerprint, epsilon=before + 1e-6, delta=DELTA)
    asking = requesting(standing, shop, records, "--private", alias="small")
    asking.start()
    assert asking.ended() == 2
    assert any("budget" in line for line in asking.lines), asking.tail
    assert shop.spent() == before
    [removal] = standing.operator.list_removals("shop")
    assert removal.state is RemovalState.PLANNED
    cancel = command(standing, shop, "cancel", removal.request_id)
    cancel.start()
    assert cancel.ended() == 0


@pytest.mark.slow
def test_a_job_here_without_privacy_sends_no_row(standing: Federation) -> None:
    """The adapter has no guarantee; the gate is measured by the client, and the receipt says so."""
    deployed(standing, "open", privacy=OFF)
    bank = standing.clients["bank"]
    records = records_of(bank, "gone", 0)
    settings = ["--set", "unlearning.learning_rate=1e-30", "--precision", "fp32"]
    asking = requesting(standing, bank, records, "--here", "--wait", *settings, alias="open")
    asking.start()
    # A change of nothing: the gate says so, and what is in use stays.
    assert asking.ended() == 3, asking.tail
    [removal] = standing.operator.list_removals("bank")
    assert removal.state is RemovalState.FAILED
    assert "gate" in removal.reason
    first = json.loads(records.read_text().splitlines()[0])["text"].encode()
    for path in (standing.folder / "state").rglob("*"):
        assert not path.is_file() or first not in path.read_bytes(), path
