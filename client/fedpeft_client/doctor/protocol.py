"""Whether client and server speak one protocol."""

from fedpeft.wire.serde import PROTOCOL
from fedpeft_client.doctor.finding import Finding
from fedpeft_client.doctor.machine import Machine, Visit


def check_protocol(machine: Machine) -> Finding:
    """Compares versions."""
    visit = machine.visit
    if not isinstance(visit, Visit):
        return Finding.skipped("the server's is not known")
    oldest, newest = visit.info.oldest_protocol, visit.info.newest_protocol
    found = f"this fedpeft speaks {PROTOCOL}, the server {oldest} to {newest}"
    if oldest > PROTOCOL:
        return Finding.fail(found, "upgrade fedpeft on this machine")
    if newest < PROTOCOL:
        return Finding.fail(found, "ask the operator to upgrade the server")
    return Finding.ok(found)
