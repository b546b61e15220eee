"""A worker's calls, its losses, its deadline, and that it ends with its parent."""

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from fedpeft.errors import DataError, RemoteError, WorkerLostError
from fedpeft.warm_worker import WarmWorker


class Counting:
    """What the worker holds."""

    def __init__(self, made: Path) -> None:
        with made.open("a") as file:
            file.write(f"{os.getpid()}\n")
        self.count = 0

    def add(self, number: int) -> int:
        self.count += number
        return self.count

    def report(self, progress: Callable[[int], None]) -> str:
        for step in range(3):
            progress(step)
        return "done"

    def fail(self) -> None:
        raise DataError("no such row")

    def refuse(self) -> None:
        raise RemoteError("revoked", "client x was revoked")

    def hang(self, progress: Callable[[int], None] = lambda _: None) -> None:
        progress(0)
        threading.Event().wait()

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return tmp_path / "made"


@pytest.fixture
def worker(made: Path) -> Iterator[WarmWorker]:
    worker = WarmWorker(partial(Counting, made), name="counting")
    yield worker
    worker.close()


def _pids(made: Path) -> list[int]:
    return [int(line) for line in made.read_text().split()]


def test_the_object_is_made_once_and_elsewhere(worker: WarmWorker, made: Path) -> None:
    assert [worker.call("add", 1), worker.call("add", 2)] == [1, 3]
    assert _pids(made) == [worker.pid]
    assert worker.pid != os.getpid()


def test_progress_comes_before_the_result(worker: WarmWorker) -> None:
    seen: list[int] = []

    assert worker.call("report", progress=seen.append) == "done"
    assert seen == [0, 1, 2]


def test_an_error_is_the_callers_and_the_worker_stays(worker: WarmWorker, made: Path) -> None:
    with pytest.raises(DataError, match="no such row"):
        worker.call("fail")
    with pytest.raises(RemoteError, match="revoked") as caught:
        worker.call("refuse")
    assert caught.value.code == "revoked"
    assert worker.call("add", 5) == 5
    assert len(_pids(made)) == 1


def test_a_killed_worker_is_reported_and_replaced(worker: WarmWorker, made: Path) -> None:
    worker.call("add", 1)
    with pytest.raises(WorkerLostError, match="ended during die"):
        worker.call("die")
    assert worker.call("add", 1) == 1
    assert len(set(_pids(made))) == 2


def test_a_worker_that_died_between_calls_is_replaced(worker: WarmWorker) -> None:
    worker.call("add", 1)
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
    assert worker.call("add", 1) == 1


def test_a_call_that_hangs_ends_at_its_deadline(worker: WarmWorker) -> None:
    worker.call("add", 1)
    hanging = worker.pid
    with pytest.raises(WorkerLostError, match=r"within 0\.2 s"):
        worker.call("hang", timeout_s=0.2)
    assert hanging is not None
    assert not psutil.pid_exists(hanging)


def test_close_ends_a_call_of_another_thread(worker: WarmWorker) -> None:
    worker.call("add", 1)
    caught: list[BaseException] = []
    hanging = threading.Event()

    def call() -> None:
        try:
            worker.call("hang", progress=lambda _: hanging.set())
        except WorkerLostError as error:
            caught.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    hanging.wait()
    worker.close()
    thread.join()
    assert len(caught) == 1


_PARENT = """
import sys, threading
from functools import partial
from pathlib import Path
from fedpeft.warm_worker import WarmWorker
from tests.test_warm_worker import Counting

if __name__ == "__main__":
    worker = WarmWorker(partial(Counting, Path(sys.argv[1])), name="orphan")
    worker.call("add", 1)
    print(worker.pid, flush=True)
    worker.call("hang")
"""


def test_a_worker_ends_when_its_parent_is_killed(tmp_path: Path, made: Path) -> None:
    """Also in the middle of a call: nobody would take its answer."""
    script = tmp_path / "parent.py"
    script.write_text(_PARENT)
    root = Path(__file__).parents[1]
    parent = subprocess.Popen(
        [sys.executable, str(script), str(made)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    assert parent.stdout is not None
    orphan = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    gone, alive = psutil.wait_procs([orphan], timeout=30)
    assert gone
    assert not alive


def test_what_was_closed_starts_nothing_again(worker: WarmWorker, made: Path) -> None:
    worker.call("add", 1)
    worker.close()
    worker.close()
    with pytest.raises(WorkerLostError, match="closed"):
        worker.call("add", 1)
    assert len(_pids(made)) == 1


@pytest.mark.parametrize("seed", range(12))
def test_close_at_any_moment_ends_calls_and_raises_nothing(made: Path, seed: int) -> None:
    """Also while the process starts, and in two threads at once."""
    worker = WarmWorker(partial(Counting, made), name="counting")
    calling, ended = threading.Event(), []

    def call() -> None:
        try:
            while True:
                calling.set()
                worker.call("add", 1)
        except WorkerLostError:
            ended.append("call")

    def close() -> None:
        worker.close()
        ended.append("close")

    threads = [threading.Thread(target=call), *(threading.Thread(target=close) for _ in "ab")]
    threads[0].start()
    calling.wait()
    if seed % 3:
        while not made.exists():
            threading.Event().wait(0.001)
        threading.Event().wait(random.Random(seed).random() / 500)
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(ended) == ["call", "close", "close"]
    assert worker.pid is None
