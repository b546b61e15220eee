"""The ledger that says what is left to spend."""

from pathlib import Path

from fedpeft.errors import FedpeftError
from fedpeft.report import text
from fedpeft_client.doctor.finding import Finding
from fedpeft_client.doctor.machine import Machine

_RESTORE = "docs/runbook.md, 'A client lost its ledger'"


def check_ledger(machine: Machine) -> Finding:
    """Opens it and verifies its whole chain."""
    folder = machine.folder
    if isinstance(folder, FedpeftError):
        return Finding.skipped("the client's folder cannot be used")
    if folder is None and machine.ledger is None:
        return Finding.skipped("there is no folder yet")
    try:
        membership = None if folder is None else folder.membership()
        location = machine.ledger if folder is None else folder.ledger_of(machine.ledger)
    except FedpeftError as error:
        return Finding.fail(str(error), _RESTORE)
    assert location is not None
    if membership is None and "://" not in location and not Path(location).exists():
        return Finding.ok(f"{location} will be made by the first join")
    from fedpeft.ledger import Ledger

    try:
        with Ledger.open(location, read_only=True) as ledger:
            head = ledger.verify()
            balance = None if membership is None else ledger.balance(membership.dataset)
    except FedpeftError as error:
        return Finding.fail(str(error), _RESTORE)
    if balance is None or balance.epsilon is None or balance.spent is None:
        return Finding.ok(f"sound, {head.count} entries, no budget for these rows yet")
    spent, budget = text.epsilon(balance.spent), text.budget(balance.epsilon)
    found = f"sound, {head.count} entries; ε {spent} of {budget} is spent"
    if balance.exhausted:
        advice = "the last round would not fit again; its owner alone may raise it"
        return Finding.warn(found, advice)
    return Finding.ok(found)
