"""Removal jobs on the owner's machine: real processes, a private adapter, a real ledger, kills."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fedpeft.dp.accounting import epsilon
from fedpeft.identity.certificates import read_certificate
from fedpeft.ledger import Ledger
from fedpeft.ledger.records import Reservation
from fedpeft.registry.trust import RegistryTrust
from fedpeft.remote.removal_records import RemovalState
from fedpeft.unlearning.receipt import Receipt, verify_receipt
from tests.e2e.federation import DELTA, OFF, Federation, Host, Member, program
from tests.e2e.process import Process

pytestmark = pytest.mark.e2e
GONE = 3


def records_of(member: Member, name: str, number: int) -> Path:
    """A file with some of the client's rows; others for each number."""
    lines = (member.folder / "rows.jsonl").read_text().splitlines()
    path = member.folder / f"{name}.jsonl"
    path.write_text("\n".join(lines[GONE * number : GONE * (number + 1)]) + "\n")
    return path


def command(standing: Federation, member: Member, *arguments: str) -> Process:
    """A `fedpeft removal` command of the client's owner."""
    by = ["--server", standing.address, "--identity", str(member.folder)]
    return program(
        f"{member.name}-removal",
        ["removal", *arguments, *by],
        folder=standing.folder,
        host=Host(),
        source=standing.source,
    )


def requesting(
    standing: Federation, member: Member, records: Path, *more: str, alias: str = "production"
) -> Process:
    state = ["--state", str(member.folder / "state")]
    asked = ["request", "--adapter", alias, "--records", str(records), *state, *more]
    return command(standing, member, *asked)


def reservations(member: Member, purpose: str) -> list[Reservation]:
    with Ledger.open(member.ledger, read_only=True) as ledger:
        [balance] = ledger.balances()
        found = ledger.reservations(balance.fingerprint)
    return [reservation for reservation in found if reservation.purpose.startswith(purpose)]


def receipt_of(standing: Federation, member: Member, request_id: str) -> Receipt:
    authority = read_certificate(member.folder / "authority.cert.pem")
    document = standing.operator.get_receipt(request_id)
    return verify_receipt(document, RegistryTrust.of_authority(authority))


def deployed(standing: Federation, alias: str, privacy: Mapping[str, object] | None = None) -> str:
    """Trains a version of all clients and gives it a name."""
    options: dict[str, Any] = {} if privacy is None else {"privacy": privacy}
    done = standing.submit(standing.config(num_rounds=1, **options)).finished()
    return standing.operator.deploy_adapter(done.run.run_id, alias).adapter


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
