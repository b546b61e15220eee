"""The server's control plane: reached, trusted, and it trusts this machine."""

from fedpeft.errors import FedpeftError
from fedpeft_client.doctor.finding import Finding
from fedpeft_client.doctor.machine import Machine


def check_control_port(machine: Machine) -> Finding:
    """Makes one call in mutual TLS."""
    if machine.server is None:
        return Finding.skipped("no server was named")
    visit = machine.visit
    if visit is None:
        return Finding.skipped("without a certificate that holds nobody is let in")
    if isinstance(visit, FedpeftError):
        remedy = "put in order what it says"
        if "certificate" in str(visit):
            here = f"{machine.now():%Y-%m-%d %H:%M} UTC"
            remedy += f"; a wrong clock has the same effect: here it is {here}"
        return Finding.fail(str(visit), remedy)
    took_ms = (visit.answered_at - visit.asked_at).total_seconds() * 1000
    return Finding.ok(
        f"fedpeft {visit.info.version} at {machine.server} answers in {took_ms:.0f} ms, "
        f"knows this machine as {visit.info.caller!r}",
    )
