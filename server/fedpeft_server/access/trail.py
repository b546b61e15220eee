"""The audit trail of calls: each change as it begins and as it ends, and each refusal.

A caller who is refused again and again must not fill the disk: each name has 100 entries for
refusals, and then 6 an hour. What is left out is counted, and the next entry says how many. All
who have no name that can be trusted share one bucket. Changes are limited where they are let in.
"""

import threading
from collections import Counter

import structlog

from fedpeft.errors import FedpeftError
from fedpeft_server.access.limits import Rate
from fedpeft_server.state import State

BEGUN, OK = "begun", "ok"

_BURST, _PER_MINUTE = 100, 0.1
_LOG = structlog.get_logger("audit")


class AuditTrail:
    """Writes what calls did to the audit log."""

    def __init__(self, state: State, rate: Rate | None = None) -> None:
        """Takes the state, and how many refusals of one name are written."""
        self._state = state
        self._rate = rate or Rate(burst=_BURST, per_minute=_PER_MINUTE)
        self._lock = threading.Lock()
        self._left_out: Counter[str] = Counter()

    def begun(self, actor: str, method: str, subject: str, request_id: str) -> None:
        """Records that a change is about to be made.

        Raises:
            UnavailableError: If it cannot be recorded; the change must not be made then.
        """
        self._state.append_audit(actor, method, subject, BEGUN, {"request": request_id})

    def ended(self, actor: str, method: str, subject: str, outcome: str, request_id: str) -> None:
        """Records what became of a change that was begun."""
        self._append(actor, method, subject, outcome, {"request": request_id})

    def refused(self, actor: str, method: str, subject: str, code: str, request_id: str) -> None:
        """Records a refusal, or counts it."""
        with self._lock:
            if not self._rate.take(actor):
                self._left_out[actor] += 1
                return
            left_out = self._left_out.pop(actor, 0)
        detail: dict[str, str | int] = {"request": request_id}
        if left_out:
            detail["left_out_before"] = left_out
        self._append(actor, method, subject, code, detail)

    def _append(
        self, actor: str, method: str, subject: str, outcome: str, detail: dict[str, str | int]
    ) -> None:
        try:
            self._state.append_audit(actor, method, subject, outcome, detail)
        except FedpeftError as error:
            # The answer is already decided, and it is not the caller's fault.
            _LOG.error(
                "audit entry lost", actor=actor, method=method, outcome=outcome, reason=str(error)
            )
