"""A server that stops: what was begun is finished, and nothing new is begun."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedpeft.errors import FedpeftError, UnavailableError
from tests.server.control_rig import Rig, listening
from tests.server.runs import config


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with listening(tmp_path, shutdown_s=60.0) as opened:
        yield opened


def test_a_call_that_was_begun_is_answered(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()
    start = rig.engine.start

    def slowly(run_id: str) -> None:
        begun.set()
        assert go_on.wait(30)
        start(run_id)

    monkeypatch.setattr(rig.engine, "start", slowly)
    operator, outcomes = rig.connect("operator"), list[object]()

    def submit() -> None:
        try:
            outcomes.append(operator.submit_run(config()).run_id)
        except FedpeftError as error:
            outcomes.append(error)

    submitting = threading.Thread(target=submit)
    submitting.start()
    assert begun.wait(30)
    stopping = threading.Thread(target=rig.control.stop)
    stopping.start()
    with pytest.raises(UnavailableError):
        rig.connect("reader").get_server()
    assert not rig.control.is_ready()
    assert stopping.is_alive(), "it waits for the open call"
    go_on.set()
    submitting.join(30)
    stopping.join(30)
    assert outcomes == [run.run_id for run in rig.state.runs()]
    assert rig.state.audit()[-1].outcome == "ok"


def test_stopping_twice_does_nothing(rig: Rig) -> None:
    rig.control.stop()
    rig.control.stop()


def test_a_call_that_never_ends_is_cut_off(tmp_path: Path) -> None:
    stuck = threading.Event()
    with listening(tmp_path / "f", shutdown_s=0.1) as rig:
        rig.engine.start = lambda run_id: stuck.wait(30) and None  # type: ignore[method-assign]
        operator = rig.connect("operator")
        failed: list[FedpeftError] = []

        def submit() -> None:
            try:
                operator.submit_run(config())
            except FedpeftError as error:
                failed.append(error)

        submitting = threading.Thread(target=submit)
        submitting.start()
        while not rig.state.runs():
            pass
        stopping = threading.Thread(target=rig.control.stop)
        stopping.start()
        submitting.join(30)
        assert len(failed) == 1
        stuck.set()
        stopping.join(30)
