"""A line that breaks: what is asked again, what is not, and that nothing is lost or doubled."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedpeft.errors import UnavailableError
from fedpeft.remote import Connection
from fedpeft_server import events
from fedpeft_server.records import RunStatus
from tests.remote.relay import Relay, relay
from tests.server.control_rig import Rig, listening
from tests.server.runs import config, submitted


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with listening(tmp_path) as opened:
        yield opened


@pytest.fixture
def line(rig: Rig) -> Iterator[Relay]:
    with relay(rig.control.port) as made:
        yield made


@pytest.fixture
def operator(rig: Rig, line: Relay) -> Iterator[Connection]:
    credentials = rig.holders.of("operator")
    with Connection(f"localhost:{line.port}", credentials, patience_s=60.0) as connection:
        yield connection


def mended_at(line: Relay, monkeypatch: pytest.MonkeyPatch, attempt: int) -> list[int]:
    """Mends the line at the so-many-th pause; the pauses that were made."""
    import time

    pauses: list[int] = []
    sleep = time.sleep

    def count(seconds: float) -> None:
        pauses.append(1)
        if len(pauses) == attempt:
            line.mend()
        sleep(seconds)

    monkeypatch.setattr("fedpeft.remote.caller.time.sleep", count)
    return pauses


def test_a_call_is_made_again_until_the_line_is_whole(
    rig: Rig, line: Relay, operator: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator.get_server()
    line.cut()
    pauses = mended_at(line, monkeypatch, 2)
    assert operator.submit_run(config()).run_id == rig.state.runs()[0].run_id
    assert len(pauses) >= 2
    assert len(rig.state.runs()) == 1


def test_patience_ends(rig: Rig, line: Relay) -> None:
    line.cut()
    credentials = rig.holders.of("operator")
    with (
        Connection(f"localhost:{line.port}", credentials, patience_s=0.5) as connection,
        pytest.raises(UnavailableError, match=f"localhost:{line.port}: "),
    ):
        connection.get_server()


def test_what_would_be_done_twice_is_not_asked_again(
    line: Relay, operator: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator.get_server()
    line.cut()
    pauses = mended_at(line, monkeypatch, 1)
    with pytest.raises(UnavailableError):
        operator.invite_client("clinic")
    assert pauses == []


def test_a_watched_run_goes_on_where_the_line_broke(
    rig: Rig, line: Relay, operator: Connection
) -> None:
    run_id = submitted(rig)
    seen: list[int] = []
    first, second = threading.Event(), threading.Event()

    def watch() -> None:
        for event in operator.watch_run(run_id):
            seen.append(event.position)
            if event.position == 2:
                first.set()
            if event.position == 4:
                second.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    rig.state.add_event(run_id, events.NOTE, body={"message": "2"})
    assert first.wait(30)
    line.cut()
    for message in ("3", "4"):
        rig.state.add_event(run_id, events.NOTE, body={"message": message})
    line.mend()
    assert second.wait(30)
    rig.engine.turn(run_id, RunStatus.FINISHED)
    watcher.join(30)
    assert seen == [1, 2, 3, 4, 5]
    assert line.num_connections >= 2


def test_what_is_signed_is_new_at_every_attempt(
    rig: Rig, line: Relay, operator: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is lost, the request is not: asked again, it is no replay."""
    state, reached = rig.state, threading.Event()
    original = state.add_run

    def and_cut(*args: object) -> object:
        kept = original(*args)  # type: ignore[arg-type]
        if not reached.is_set():
            reached.set()
            line.cut()
        return kept

    monkeypatch.setattr(state, "add_run", and_cut)
    mended_at(line, monkeypatch, 1)
    run = operator.submit_run(config())
    assert reached.is_set()
    assert [kept.run_id for kept in state.runs()] == [run.run_id]
