"""Removal requests of a client's owner, by the command line, and what is checked of them."""

from pathlib import Path
from typing import Any

from fedpeft.identity.certificates import read_certificate
from fedpeft.ledger import Ledger
from fedpeft.ledger.records import Reservation
from fedpeft.registry.trust import RegistryTrust
from fedpeft.unlearning.receipt import Receipt, verify_receipt
from tests.e2e.federation import Federation, Host, Member, program
from tests.e2e.process import Process

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


def deployed(standing: Federation, alias: str, **options: Any) -> str:
    """Trains a version of all clients and gives it a name."""
    done = standing.submit(standing.config(**{"num_rounds": 1, **options})).finished()
    return standing.operator.deploy_adapter(done.run.run_id, alias).adapter
