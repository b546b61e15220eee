"""Removal requests: recorded once, in no order but theirs, and without secrets at their end."""

import itertools
import json
import secrets
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fedpeft_server.records import RemovalEventRecord, RemovalRecord, RemovalState
from fedpeft_server.state import (
    NotFoundError,
    SameRequestError,
    State,
    StateError,
    WrongStateError,
)
from fedpeft_server.state.removals import ENDED, NEXT
from tests.server.state.conftest import Execute
from tests.server.state.samples import NOW, a_removal, an_adapter, digest

NEVER_S = 300.0
S = RemovalState
WAY = (S.RECEIVED, S.PLANNED, S.RUNNING, S.VERIFYING)


def bring(state: State, removal: RemovalRecord, to: RemovalState) -> RemovalRecord:
    """Records a request and brings it to a state by the shortest way."""
    found = state.add_removal(removal, removal.request_id)
    way = WAY[1 : WAY.index(to) + 1] if to in WAY else (*WAY[1:], to)
    for following in way:
        found = state.advance(removal.request_id, following, expected={found.state})
    return found


def test_a_request_comes_back_as_it_was_made(state: State) -> None:
    removal = a_removal(
        settings={"unlearning": {"learning_rate": 0.1 + 0.2}, "gate": {}},
        deadline=NOW + timedelta(days=30),
        void_guarantee=True,
        job_public_key=b"\x00" * 32,
        job_private_key=b"\xff" * 32,
    )
    assert state.add_removal(removal, "key") == removal
    assert state.removal(removal.request_id) == removal
    assert state.removals() == state.removals("north") == [removal]
    assert state.removals("south") == []
    assert isinstance(state.removal(removal.request_id).state, RemovalState)
    assert state.removal(removal.request_id).void_guarantee is True


def test_the_private_key_is_not_shown(state: State) -> None:
    removal = a_removal(job_private_key=b"secret of the job")
    assert "secret of the job" not in repr(removal)


def test_the_same_key_of_the_same_requester_is_the_same_request(state: State) -> None:
    first = state.add_removal(a_removal("1"), "key")
    assert state.add_removal(a_removal("2"), "key") == first
    state.advance(first.request_id, S.PLANNED, expected={S.RECEIVED})
    assert state.add_removal(a_removal("2"), "key").state is S.PLANNED
    other = a_removal("3", requested_by="operator", records_digest=digest("others"))
    assert state.add_removal(other, "key") == other
    with pytest.raises(WrongStateError, match=f"there is a removal {first.request_id} already"):
        state.add_removal(a_removal("1", records_digest=digest("more")), "second key")
    with pytest.raises(StateError, match="idempotency key"):
        state.add_removal(a_removal("4"), "")


def test_the_same_records_are_asked_for_once_at_a_time(state: State) -> None:
    first = state.add_removal(a_removal("1"), "first")
    with pytest.raises(SameRequestError, match="open and removes the same records") as refused:
        state.add_removal(a_removal("2"), "second")
    assert refused.value.request_id == first.request_id
    # Other records, or another version, or another's data, is another request.
    for number, changes in enumerate(
        [
            {"records_digest": digest("others")},
            {"adapter": digest("another")},
            {"client_id": "south"},
        ],
        start=3,
    ):
        state.add_removal(a_removal(str(number), **changes), f"key {number}")
    # And so is the same one when the first has ended.
    state.advance(first.request_id, S.CANCELLED, expected={S.RECEIVED}, reason="a mistake")
    assert state.add_removal(a_removal("2"), "second").state is S.RECEIVED


@pytest.mark.parametrize(("now", "following"), list(itertools.product(S, S)))
def test_every_step_is_one_of_those_that_follow(
    state: State, now: RemovalState, following: RemovalState
) -> None:
    # Written out a second time.
    forward = {(S.RECEIVED, S.PLANNED), (S.PLANNED, S.RUNNING), (S.RUNNING, S.VERIFYING)}
    forward |= {(S.VERIFYING, S.PUBLISHED), (S.RUNNING, S.PLANNED), (S.VERIFYING, S.PLANNED)}
    forward |= {(one, end) for one in WAY for end in (S.FAILED, S.CANCELLED)}
    removal = bring(state, a_removal(), now)
    step = lambda: state.advance(  # noqa: E731
        removal.request_id, following, expected=set(S), reason="why"
    )
    if (now, following) in forward:
        found = step()
        assert (found.state, found.reason) == (following, "why")
        assert state.removal(removal.request_id) == found
    else:
        with pytest.raises(WrongStateError, match=f"is {now}; it does not become {following}"):
            step()
        assert state.removal(removal.request_id) == removal


@pytest.mark.parametrize("how", [S.FAILED, S.CANCELLED])
def test_an_end_its_event_and_its_audit_entry_are_one(
    state: State, monkeypatch: pytest.MonkeyPatch, how: RemovalState
) -> None:
    """Whoever is killed in the middle leaves none of the three."""
    removal = bring(state, a_removal(num_attempts=2), S.RUNNING)
    before = (state.removal_events(removal.request_id), state.audit())

    def killed(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("fedpeft_server.state.audit.append", killed)
        with pytest.raises(KeyboardInterrupt):
            state.advance(removal.request_id, how, expected={S.RUNNING}, reason="why")
    assert state.removal(removal.request_id).state is S.RUNNING
    assert (state.removal_events(removal.request_id), state.audit()) == before
    state.advance(removal.request_id, how, expected={S.RUNNING}, reason="why")
    event, entry = state.removal_events(removal.request_id)[-1], state.audit()[-1]
    assert (event.kind, event.body) == ("state", {"state": how.value, "reason": "why"})
    assert (entry.actor, entry.action, entry.subject, entry.outcome) == (
        removal.requested_by,
        "removal",
        removal.request_id,
        how.value,
    )
    assert json.loads(entry.text)["body"]["detail"] == {"attempts": 2}


def test_a_step_is_taken_only_from_what_was_expected(state: State) -> None:
    removal = bring(state, a_removal(), S.RUNNING)
    with pytest.raises(WrongStateError, match="is running, which had to be one of verifying"):
        state.advance(removal.request_id, S.FAILED, expected={S.VERIFYING})
    found = state.advance(
        removal.request_id, S.PLANNED, expected={S.RUNNING}, reason="worker lost", num_attempts=2
    )
    assert (found.num_attempts, found.reason) == (2, "worker lost")
    running = state.advance(removal.request_id, S.RUNNING, expected={S.PLANNED})
    assert (running.num_attempts, running.reason) == (2, ""), "the reason belongs to the state"


@pytest.mark.parametrize("end", sorted(ENDED))
def test_an_end_destroys_the_key(state: State, execute: Execute, end: RemovalState) -> None:
    """What was sealed to it can be read no more; its place is kept until it was deleted."""
    removal = a_removal(job_public_key=b"\x01" * 32, job_private_key=b"\x02" * 32)
    state.add_removal(removal, "key")
    state.store_sealed(removal.request_id, digest("sealed"))
    for now, following in itertools.pairwise((*WAY[1:], end)):
        kept = state.removal(removal.request_id)
        assert (kept.job_private_key, kept.sealed) == (b"\x02" * 32, digest("sealed"))
        state.advance(removal.request_id, following, expected={now})
    columns = "job_public_key, job_private_key, sealed"
    assert execute(f"SELECT {columns} FROM server_removals") == [(None, None, digest("sealed"))]
    state.destroy_secrets(removal.request_id)
    assert execute(f"SELECT {columns} FROM server_removals") == [(None, None, None)]
    assert state.removal(removal.request_id).records_digest == removal.records_digest


def test_secrets_are_destroyed_before_the_end_too(state: State) -> None:
    removal = a_removal(job_public_key=b"\x01" * 32, job_private_key=b"\x02" * 32)
    state.add_removal(removal, "key")
    state.destroy_secrets(removal.request_id)
    state.destroy_secrets(removal.request_id)
    found = state.removal(removal.request_id)
    assert (found.job_public_key, found.job_private_key, found.sealed) == (None, None, None)


@pytest.mark.parametrize("location", ["sqlite"], indirect=True)
def test_what_was_destroyed_is_in_no_file(state: State, location: str) -> None:
    """Neither in a page that is free nor in the write-ahead log, while the server goes on."""
    key = secrets.token_bytes(32)

    def found() -> list[str]:
        folder = Path(location).parent
        return [path.name for path in folder.iterdir() if key in path.read_bytes()]

    state.add_removal(a_removal(job_public_key=b"\x01" * 32, job_private_key=key), "key")
    assert found()
    state.store_sealed("1".rjust(16, "0"), digest("sealed"))
    state.advance("1".rjust(16, "0"), S.FAILED, expected={S.PLANNED})
    state.destroy_secrets("1".rjust(16, "0"))
    assert found() == []


def test_records_are_sent_once(state: State) -> None:
    removal = a_removal(job_public_key=b"\x01" * 32, job_private_key=b"\x02" * 32)
    state.add_removal(removal, "key")
    stored = state.store_sealed(removal.request_id, digest("sealed"))
    assert (stored.state, stored.sealed) == (S.PLANNED, digest("sealed"))
    assert stored.job_public_key is None
    assert stored.job_private_key == b"\x02" * 32
    assert state.store_sealed(removal.request_id, digest("sealed")) == stored
    with pytest.raises(WrongStateError, match="is planned and takes no records"):
        state.store_sealed(removal.request_id, digest("others"))


def test_records_come_only_while_they_are_waited_for(state: State) -> None:
    for number, keys in (("1", {}), ("2", {"job_public_key": b"\x01" * 32})):
        removal = a_removal(number, records_digest=digest(number), **keys)
        removal = bring(state, removal, S.PLANNED if keys else S.RECEIVED)
        with pytest.raises(WrongStateError, match=f"is {removal.state} and takes no records"):
            state.store_sealed(removal.request_id, digest("sealed"))


def test_a_request_is_found_by_its_key(state: State) -> None:
    removal = state.add_removal(a_removal(), "key")
    assert state.removal_with_key("north", "key") == removal
    assert state.removal_with_key("south", "key") is None
    assert state.removal_with_key("north", "another") is None


@pytest.mark.parametrize("now", S)
def test_a_request_is_planned_again_before_its_job(state: State, now: RemovalState) -> None:
    removal = bring(state, a_removal(), now)
    named = an_adapter(3, "run-2")
    again = partial(state.replan_removal, removal.request_id, named, {"claim": "exact"})
    if now in (S.RECEIVED, S.PLANNED):
        found = again()
        assert (found.adapter, found.run_id, found.round) == (named.digest, "run-2", 3)
        assert (found.plan, found.state) == ({"claim": "exact"}, now)
        assert state.removal(removal.request_id) == found
    else:
        with pytest.raises(WrongStateError, match=f"is {now}; only one whose job"):
            again()
        assert state.removal(removal.request_id) == removal


def test_the_earliest_deadline_comes_first(state: State) -> None:
    deadlines = {"a": None, "b": 3, "c": 1, "d": None, "e": 3, "f": 2}
    for name, hours in deadlines.items():
        deadline = None if hours is None else NOW + timedelta(hours=hours)
        removal = a_removal(name, deadline=deadline, records_digest=digest(name))
        bring(state, removal, S.RUNNING if name == "f" else S.PLANNED)

    def names(*states: RemovalState) -> list[str]:
        return [removal.request_id[-1] for removal in state.removals_in(states)]

    assert names(S.PLANNED) == ["c", "b", "e", "a", "d"]
    assert names(S.PLANNED, S.RUNNING) == ["c", "f", "b", "e", "a", "d"]
    assert names(S.RECEIVED) == names() == []


def test_progress_is_that_of_the_job_now(state: State) -> None:
    removal = bring(state, a_removal(), S.PLANNED)
    state.set_progress(removal.request_id, 0.5)
    assert state.removal(removal.request_id).progress == 0.0, "no job is under way"
    state.advance(removal.request_id, S.RUNNING, expected={S.PLANNED})
    state.set_progress(removal.request_id, 1 / 3)
    assert state.removal(removal.request_id).progress == 1 / 3
    assert state.advance(removal.request_id, S.VERIFYING, expected=WAY).progress == 1 / 3
    assert state.advance(removal.request_id, S.PLANNED, expected=WAY).progress == 0.0
    for wrong in (float("nan"), -0.1, 1.1, float("inf")):
        with pytest.raises(StateError, match="progress lies in"):
            state.set_progress(removal.request_id, wrong)


def test_a_result_stays_until_it_is_published(state: State) -> None:
    removal = bring(state, a_removal(), S.RUNNING)
    result = {"digest": digest("successor"), "lost": 0.1 + 0.2, "gate": {"passed": True}}
    state.store_result(removal.request_id, digest("first"), {})
    stored = state.store_result(removal.request_id, digest("second"), result)
    assert state.removal(removal.request_id) == stored
    assert (stored.result_artifact, stored.result) == (digest("second"), result)
    state.advance(removal.request_id, S.VERIFYING, expected={S.RUNNING})
    published = state.advance(
        removal.request_id,
        S.PUBLISHED,
        expected={S.VERIFYING},
        successor=digest("successor"),
        receipt_json='{"kind":"removal-receipt"}',
    )
    assert state.removal(removal.request_id) == published
    assert (published.successor, published.result) == (digest("successor"), result)
    assert published.receipt_json == '{"kind":"removal-receipt"}'
    with pytest.raises(WrongStateError, match="is published; it takes no result any more"):
        state.store_result(removal.request_id, digest("third"), {})


def test_the_time_of_the_last_change(state: State) -> None:
    removal = a_removal(updated_at=NOW - timedelta(days=3000))
    state.add_removal(removal, "key")
    assert state.removal(removal.request_id).updated_at == removal.updated_at
    planned = state.advance(removal.request_id, S.PLANNED, expected={S.RECEIVED})
    assert planned.updated_at > removal.updated_at
    assert planned.created_at == removal.created_at


def test_events_are_numbered_within_their_request(state: State) -> None:
    one, two = a_removal("1"), a_removal("2", records_digest=digest("others"))
    for removal in (one, two):
        state.add_removal(removal, removal.request_id)
    first = state.add_removal_event(one.request_id, "note", {"message": "größer", "share": 0.3})
    other = state.add_removal_event(two.request_id, "note")
    second = state.add_removal_event(one.request_id, "state")
    assert (first.position, other.position, second.position) == (1, 1, 2)
    assert state.removal_events(one.request_id) == [first, second]
    assert state.removal_events(one.request_id, after=1) == [second]
    assert state.removal_events(one.request_id, limit=1) == [first]


def waiting(state: State, request_id: str) -> tuple[threading.Thread, list[RemovalEventRecord]]:
    found: list[RemovalEventRecord] = []
    thread = threading.Thread(
        target=lambda: found.extend(state.wait_removal_events(request_id, 0, NEVER_S))
    )
    thread.start()
    return thread, found


def test_a_waiter_gets_the_next_event_of_its_request(state: State) -> None:
    one, two = a_removal("1"), a_removal("2", records_digest=digest("others"))
    for removal in (one, two):
        state.add_removal(removal, removal.request_id)
    thread, found = waiting(state, one.request_id)
    state.add_removal_event(two.request_id, "note")
    event = state.add_removal_event(one.request_id, "note")
    thread.join()
    assert found == [event]
    assert state.wait_removal_events(one.request_id, 1, 0.0) == []


def test_closing_lets_waiters_go(location: str) -> None:
    with State.open(location) as state:
        removal = state.add_removal(a_removal(), "key")
        thread, found = waiting(state, removal.request_id)
        state.close()
        thread.join()
        assert found == []


def test_requests_that_are_not_there(state: State) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: state.removal("9"),
        lambda: state.advance("9", S.FAILED, expected=set(S)),
        lambda: state.set_progress("9", 0.5),
        lambda: state.store_sealed("9", digest("sealed")),
        lambda: state.store_result("9", digest("result"), {}),
        lambda: state.destroy_secrets("9"),
        lambda: state.replan_removal("9", an_adapter(3), {}),
        lambda: state.add_removal_event("9", "note"),
        lambda: state.removal_events("9"),
        lambda: state.wait_removal_events("9", 0, NEVER_S),
    ]
    for call in calls:
        with pytest.raises(NotFoundError, match="there is no removal '9'"):
            call()
    assert state.removals() == []


def test_the_table_of_steps_is_whole() -> None:
    assert set(NEXT) == set(S)
    assert {state for state, following in NEXT.items() if not following} == ENDED
    assert replace(a_removal(), state=S.FAILED).state in ENDED
