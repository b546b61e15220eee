"""Whether this machine and the server agree on what time it is."""

from datetime import timedelta

from fedpeft.wire.signing import WINDOW
from fedpeft_client.doctor.finding import Finding
from fedpeft_client.doctor.machine import Machine, Visit

_NOTABLE = timedelta(seconds=30)
_REMEDY = "let NTP set this machine's clock (`timedatectl set-ntp true`)"


def check_clock(machine: Machine) -> Finding:
    """Compares clocks; the server's time was read between question and answer."""
    visit = machine.visit
    if not isinstance(visit, Visit):
        return Finding.skipped("the server's time is not known")
    ahead, behind = visit.asked_at - visit.info.time, visit.info.time - visit.answered_at
    # The least that explains what was seen: the answer may have been long on its way.
    apart = max(ahead, behind, timedelta(0))
    if apart == timedelta(0):
        return Finding.ok("as the server's")
    seconds = f"{apart.total_seconds():.1f} s"
    side = "ahead of" if ahead > behind else "behind"
    found = f"{seconds} {side} the server's"
    if apart > WINDOW:
        limit = f"more than {WINDOW.total_seconds():.0f} s, so signed requests are refused"
        return Finding.fail(f"{found}: {limit}", _REMEDY)
    if apart > _NOTABLE:
        return Finding.warn(found, _REMEDY)
    return Finding.ok(found)
