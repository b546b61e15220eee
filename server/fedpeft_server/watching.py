"""Following a run: what happened, what happens, and its end.

A watcher has a thread of the server's for as long as it watches. `limits.max_streams` bounds how
many do, and the server has more threads than that, so that watchers never keep short calls waiting.
"""

from collections.abc import Iterator

from fedpeft_server import events
from fedpeft_server.access.call import Call
from fedpeft_server.records import EventRecord
from fedpeft_server.run_context import UNDER_WAY
from fedpeft_server.state import State

_TICK_S = 1.0
"""How soon a watcher notices that its caller went away, was revoked, or that the server stops."""


def watch(state: State, run_id: str, after: int, call: Call) -> Iterator[EventRecord]:
    """Yields the events beyond a position until the run has ended, or nobody waits any more.

    Args:
        state: Where they are recorded.
        run_id: The run.
        after: Position.
        call: Whose caller must still be let in, at every event and every second.
    """
    told_end = False
    while call.is_active():
        call.recheck()
        ended = state.run(run_id).status not in UNDER_WAY
        # The end is told after the status has changed; a crash may have come between the two.
        wait_s = 0.0 if ended and told_end else _TICK_S
        found = state.wait_events(run_id, after, wait_s)
        for event in found:
            after = event.position
            if event.kind == events.STATUS:
                told_end = event.body.get("status") not in UNDER_WAY
            yield event
        if ended and not found:
            return
