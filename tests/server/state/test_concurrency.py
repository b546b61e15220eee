"""Several writers at once: threads of one process, and processes."""

import threading
from datetime import timedelta

import pytest

from fedpeft_server.records import RemovalState
from fedpeft_server.state import BadTokenError, SameRequestError, State, WrongStateError
from tests.processes import read, running, write
from tests.server.state.samples import (
    COHORT,
    NOW,
    SOON,
    a_budget,
    a_client,
    a_removal,
    a_run,
    an_update,
    begin,
    digest,
    finish,
)

NUM_THREADS = 6


def in_threads(target: object) -> None:
    assert callable(target)
    errors: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            target(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=[n]) for n in range(NUM_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_one_token_enrols_one_of_many_keys(state: State) -> None:
    token = digest("token")
    state.add_invitation("north", token, SOON, "operator")
    enrolled = []

    def enrol(number: int) -> None:
        client = a_client(key=f"key {number}", serial=str(number))
        try:
            enrolled.append(state.enrol("north", token, client, NOW))
        except BadTokenError:
            return

    in_threads(enrol)
    assert state.clients() == enrolled


def test_one_key_of_a_submitter_makes_one_run(state: State) -> None:
    found = []
    in_threads(lambda n: found.append(state.add_run(a_run(f"run-{n}"), "key", "operator")))
    assert {run.run_id for run in found} == {run.run_id for run in state.runs()}
    assert len(state.runs()) == 1


def test_the_same_records_make_one_open_removal(state: State) -> None:
    made: list[str] = []
    refused: list[str] = []

    def ask(number: int) -> None:
        try:
            made.append(state.add_removal(a_removal(str(number)), f"key {number}").request_id)
        except SameRequestError as error:
            refused.append(error.request_id)

    in_threads(ask)
    assert [removal.request_id for removal in state.removals()] == made
    assert refused == made * (NUM_THREADS - 1)


def test_of_two_states_that_follow_one_is_taken(state: State) -> None:
    """A request that is cancelled while its job begins is one of the two."""
    removal = state.add_removal(a_removal(state=RemovalState.PLANNED), "key")
    taken: list[RemovalState] = []

    def advance(number: int) -> None:
        to = RemovalState.RUNNING if number % 2 else RemovalState.CANCELLED
        try:
            expected = {RemovalState.PLANNED}
            taken.append(state.advance(removal.request_id, to, expected=expected).state)
        except WrongStateError:
            return

    in_threads(advance)
    assert taken == [state.removal(removal.request_id).state]


def test_threads_do_everything_at_once_and_everything_once(state: State) -> None:
    begin(state)
    for client in COHORT:
        state.add_invitation(client, digest(client), SOON, "operator")
        state.enrol(client, digest(client), a_client(client), NOW)
    new: list[bool] = []

    def work(number: int) -> None:
        for round_number in (1, 2, 3):
            for client in COHORT:
                budget = a_budget(client, round_number)
                new.append(state.add_update(an_update(client, round_number), budget))
                new.append(state.use_nonce(client, bytes([round_number]), SOON, NOW))
                state.seen(client, NOW + timedelta(minutes=number * 10 + round_number))
            finish(state, round_number)
            state.add_event("run-1", "note", round=round_number)
            assert len(state.updates("run-1", round_number)) == len(COHORT)
            assert state.newest_adapter("run-1") is not None

    in_threads(work)
    assert sum(new) == 2 * 3 * len(COHORT)
    assert len(state.rounds("run-1")) == 3
    positions = [event.position for event in state.events("run-1")]
    assert positions == list(range(1, 3 * NUM_THREADS + 1))
    last = NOW + timedelta(minutes=(NUM_THREADS - 1) * 10 + 3)
    assert {client.last_seen for client in state.clients()} == {last}
    assert state.audit() == []


def test_processes_do_everything_once(location: str) -> None:
    with State.open(location) as state:
        begin(state)
        module = "tests.server.state.worker"
        with (
            running(module, "race", location, "one") as one,
            running(module, "race", location, "two") as two,
        ):
            assert [read(process) for process in (one, two)] == ["ready"] * 2
            for process in (one, two):
                write(process, "go")
            assert sum(int(read(process)) for process in (one, two)) == 40
        assert state.verify_audit().count == 40
        assert [event.position for event in state.events("run-1")] == list(range(1, 41))


@pytest.mark.parametrize("num_readers", [20])
def test_more_readers_than_connections(state: State, num_readers: int) -> None:
    begin(state)
    threads = [threading.Thread(target=state.runs) for _ in range(num_readers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
