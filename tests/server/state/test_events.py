"""Events of a run: numbered without gaps, and waited for without asking again and again."""

import threading

import pytest

from fedpeft_server.records import EventRecord
from fedpeft_server.state import NotFoundError, State
from tests.server.state.samples import begin

NEVER_S = 300.0


def test_events_are_numbered_within_their_run(state: State) -> None:
    begin(state)
    begin(state, "run-2")
    body = {"message": "größer", "metrics": {"loss": 0.1 + 0.2}, "cohort": ["a"], "none": None}
    first = state.add_event("run-1", "note", body=body)
    other = state.add_event("run-2", "note")
    second = state.add_event("run-1", "update", round=3, client_id="north")
    assert (first.position, other.position, second.position) == (1, 1, 2)
    assert state.events("run-1") == [first, second]
    assert (second.round, second.client_id, second.body) == (3, "north", {})
    assert state.events("run-1", after=1) == [second]
    assert state.events("run-1", limit=1) == [first]
    assert state.events("run-1", after=2) == []
    for call in (lambda: state.add_event("run-9", "note"), lambda: state.events("run-9")):
        with pytest.raises(NotFoundError, match="there is no run 'run-9'"):
            call()


def waiting(state: State, after: int) -> tuple[threading.Thread, list[EventRecord]]:
    found: list[EventRecord] = []
    thread = threading.Thread(
        target=lambda: found.extend(state.wait_events("run-1", after, NEVER_S))
    )
    thread.start()
    return thread, found


def test_a_waiter_gets_the_next_event_of_its_run(state: State) -> None:
    begin(state)
    begin(state, "run-2")
    thread, found = waiting(state, 0)
    state.add_event("run-2", "note")
    event = state.add_event("run-1", "note")
    thread.join()
    assert found == [event]
    assert state.wait_events("run-1", 0, NEVER_S) == [event]
    assert state.wait_events("run-1", 1, 0.0) == []
    assert state.wait_events("run-1", 1, 0.02) == []


def test_many_waiters_miss_nothing(state: State) -> None:
    begin(state)
    seen: list[list[int]] = [[] for _ in range(4)]

    def watch(positions: list[int]) -> None:
        while len(positions) < 30:
            found = state.wait_events("run-1", len(positions), NEVER_S)
            positions += [event.position for event in found]

    threads = [threading.Thread(target=watch, args=[positions]) for positions in seen]
    for thread in threads:
        thread.start()
    for _ in range(30):
        state.add_event("run-1", "note")
    for thread in threads:
        thread.join()
    assert seen == [list(range(1, 31))] * 4


def test_closing_lets_waiters_go(location: str) -> None:
    with State.open(location) as state:
        begin(state)
        thread, found = waiting(state, 0)
        state.close()
        thread.join()
        assert found == []
        assert state.wait_events("run-1", 0, NEVER_S) == []
