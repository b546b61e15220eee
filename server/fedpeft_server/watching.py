"""Following a run or a removal: what happened, what happens, and its end.

A watcher has a thread of the server's for as long as it watches. `limits.max_streams` bounds how
many do, and the server has more threads than that, so that watchers never keep short calls waiting.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol, TypeVar

from fedpeft_server import events
from fedpeft_server.access.call import Call
from fedpeft_server.records import (
    EventRecord,
    JsonValue,
    RemovalEventRecord,
    RemovalRecord,
    RemovalState,
)
from fedpeft_server.removals import events as removal_events
from fedpeft_server.run_context import UNDER_WAY
from fedpeft_server.state import State
from fedpeft_server.state.removals import OPEN

_TICK_S: Final = 1.0
"""How soon a watcher notices that its caller went away, was revoked, or that the server stops."""


class _Event(Protocol):
    @property
    def position(self) -> int: ...
    @property
    def kind(self) -> str: ...
    @property
    def body(self) -> Mapping[str, JsonValue]: ...


CONFIRMED_WITHIN: Final = timedelta(minutes=2)
"""After a publication; by then it is told whether the replicas follow, or nobody will tell."""

E = TypeVar("E", bound=_Event)


def watch(state: State, run_id: str, after: int, call: Call) -> Iterator[EventRecord]:
    """Yields the events of a run beyond a position until it has ended, or nobody waits any more.

    Args:
        state: Where they are recorded.
        run_id: The run.
        after: Position.
        call: Whose caller must still be let in, at every event and every second.
    """
    return _follow(
        lambda position, wait_s: state.wait_events(run_id, position, wait_s),
        after,
        call,
        has_ended=lambda: state.run(run_id).status not in UNDER_WAY,
        tells_end=lambda event: (
            None if event.kind != events.STATUS else event.body.get("status") not in UNDER_WAY
        ),
    )


def watch_removal(
    state: State, request_id: str, after: int, call: Call
) -> Iterator[RemovalEventRecord]:
    """Yields the events of a removal request, as `watch` does those of a run.

    One that was published has ended when it is told whether the replicas follow; where a
    coordinator was killed before it was, nobody is told any more.
    """
    return _follow(
        lambda position, wait_s: state.wait_removal_events(request_id, position, wait_s),
        after,
        call,
        has_ended=lambda: _nothing_comes(state, state.removal(request_id)),
        tells_end=lambda event: (
            None if event.kind != removal_events.STATE else event.body.get("state") not in OPEN
        ),
    )


def _nothing_comes(state: State, removal: RemovalRecord) -> bool:
    if removal.state is not RemovalState.PUBLISHED or not removal.plan.get("aliases"):
        return removal.state not in OPEN
    if datetime.now(UTC) - removal.updated_at > CONFIRMED_WITHIN:
        return True
    told = {event.kind for event in state.removal_events(removal.request_id, limit=10**6)}
    return bool(told & {removal_events.CONFIRMED, removal_events.UNCONFIRMED})


def _follow(
    wait: Callable[[int, float], Sequence[E]],
    after: int,
    call: Call,
    *,
    has_ended: Callable[[], bool],
    tells_end: Callable[[E], bool | None],
) -> Iterator[E]:
    told_end = False
    while call.is_active():
        call.recheck()
        ended = has_ended()
        # The end is told after the status has changed; a crash may have come between the two.
        found = wait(after, 0.0 if ended and told_end else _TICK_S)
        for event in found:
            after = event.position
            tells = tells_end(event)
            told_end = told_end if tells is None else tells
            yield event
        if ended and not found:
            return
