"""Why a client that was asked is not in a round, beside its own refusals: codes of the records."""

from typing import Final

from fedpeft.federated import refusals

LATE: Final = "late"
SURPLUS: Final = "surplus"
REJECTED: Final = "rejected"
REVOKED: Final = "revoked"

MAY_HAVE_RELEASED: Final = frozenset(
    {LATE, SURPLUS, REJECTED, REVOKED, refusals.REMOVED, refusals.LOST, refusals.INTERNAL}
)
"""Of clients that may have released something, whatever they say; also who was revoked may have
been asked before, by this process or the last one."""
