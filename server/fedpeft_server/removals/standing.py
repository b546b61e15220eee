"""Where a removal request stands, and how it gets from one state to the next."""

from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from typing import Any

from fedpeft.registry.artifacts import ArtifactStore
from fedpeft_server.records import JsonValue, RemovalRecord, RemovalState
from fedpeft_server.removals import events
from fedpeft_server.removals.planning import RETRAIN
from fedpeft_server.removals.retraining import Retraining
from fedpeft_server.removals.secrets import destroy
from fedpeft_server.state import NotFoundError, State, WrongStateError
from fedpeft_server.state.removals import OPEN

_S = RemovalState

Watch = Callable[[str, Mapping[str, Any]], None]
"""Is told of every event: its kind, and its request and body."""


class Standing:
    """Writes down where requests stand, and tells of it. Whoever calls holds the engine's lock."""

    def __init__(
        self,
        state: State,
        artifacts: ArtifactStore,
        retraining: Retraining,
        *,
        stop_run: Callable[[str, str], object],
        watch: Watch,
        max_attempts: int,
    ) -> None:
        """The arguments are those of `engine.RemovalJobs`."""
        self._state, self._artifacts, self._retraining = state, artifacts, retraining
        self._stop_run, self._watch = stop_run, watch
        self._max_attempts = max_attempts
        self._told_late: set[str] = set()

    def begun(self, removal: RemovalRecord) -> None:
        """Counts an attempt, before anything of it is done."""
        number = removal.num_attempts + 1
        self.turn(removal.request_id, _S.RUNNING, expected=(_S.PLANNED,), num_attempts=number)
        body: dict[str, JsonValue] = {"number": number, "max_attempts": self._max_attempts}
        self.tell(removal.request_id, events.ATTEMPT, body)

    def again(self, removal: RemovalRecord, what: str) -> None:
        """Has a request that lost its attempt wait for the next, or fail if it was the last."""
        if removal.state not in (_S.RUNNING, _S.VERIFYING):
            return
        if removal.num_attempts >= self._max_attempts:
            self.fail(removal.request_id, f"{what}, in each of {removal.num_attempts} attempts")
            return
        self.turn(removal.request_id, _S.PLANNED, expected=(_S.RUNNING, _S.VERIFYING), reason=what)
        self.tell(removal.request_id, events.LOST, {"what": what})

    def fail(self, request_id: str, reason: str) -> None:
        """Ends a request that is not over yet; what was affected stays in use."""
        if self._state.removal(request_id).state in OPEN:
            self.end(request_id, _S.FAILED, reason)

    def end(self, request_id: str, how: RemovalState, reason: str) -> RemovalRecord:
        """Ends a request without a publication; what was affected stays as it is."""
        removal = self.turn(request_id, how, expected=OPEN, reason=reason)
        if removal.method == RETRAIN:
            self._stop_rounds(self._retraining.run_id(request_id), how)
        destroy(self._state, self._artifacts, request_id)
        return removal

    def turn(
        self,
        request_id: str,
        state: RemovalState,
        *,
        expected: Collection[RemovalState],
        reason: str = "",
        num_attempts: int | None = None,
    ) -> RemovalRecord:
        """Brings a request from one of the `expected` states to another, and tells of it.

        Raises:
            WrongStateError: If it stands elsewhere.
        """
        turned = self._state.advance(
            request_id, state, expected=expected, reason=reason, num_attempts=num_attempts
        )
        body: dict[str, JsonValue] = {"request_id": request_id, "state": state.value}
        if state is not _S.CANCELLED:
            # A person's own words, which may name somebody: for those who may see the request.
            body["reason"] = reason
        self._watch(events.STATE, body)
        return turned

    def tell_late(self, removal: RemovalRecord) -> None:
        """Tells once of a deadline that has passed."""
        if removal.deadline is None or removal.request_id in self._told_late:
            return
        if removal.deadline < datetime.now(UTC):
            self._told_late.add(removal.request_id)
            self.tell(removal.request_id, events.LATE, {"deadline": removal.deadline.isoformat()})

    def tell(self, request_id: str, kind: str, body: Mapping[str, JsonValue]) -> None:
        """Adds to what is to be seen of a request."""
        self._state.add_removal_event(request_id, kind, body)
        self._watch(kind, {"request_id": request_id, **body})

    def _stop_rounds(self, run_id: str, how: RemovalState) -> None:
        """Stops the run of a request that has ended: nobody is charged for it any more."""
        try:
            self._stop_run(run_id, f"the removal that it retrains for is {how.value}")
        except (NotFoundError, WrongStateError):  # it was not begun, or has ended
            return
