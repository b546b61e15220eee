"""kill -9 at random moments of a run: what its ledger says is never less than what was released."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedpeft.dp.accounting import epsilon
from fedpeft.federated.plan import plan_run
from fedpeft.ledger import Ledger
from fedpeft.simulate import resume
from tests.federated.small_runs import SECRET, Watcher, charged, run_config

CLIENTS = ("client-00", "client-01", "client-02")
SETTINGS = {"privacy": SECRET, "num_rounds": 3, "local_steps": 4, "learning_rate": 0.05}
ROOT = Path(__file__).parents[2]


class Nursery:
    """Runs in processes that can be killed."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        assert self.read() == "ready"

    def read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        assert line, "the nursery ended by itself"
        return line

    def start(self, folder: Path) -> int:
        """Starts or resumes the run; returns its process."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{folder}\n")
        self._process.stdin.flush()
        return int(self.read())


@contextmanager
def nursery(config: Path, released: Path, order: str) -> Iterator[Nursery]:
    command = [sys.executable, "-m", "tests.federated.kill_worker", config, released, order]
    with subprocess.Popen(
        list(map(str, command)),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as process:
        try:
            yield Nursery(process)
        finally:
            process.kill()


def check(folder: Path, released: Path, step: object) -> tuple[int, int]:
    """Ledger against releases; returns reservations without an update, and releases."""
    steps = Counter(released.read_text(encoding="utf-8").split())
    if not (folder / "ledger.db").exists():
        assert not steps
        return 0, 0
    events = charged(folder / "ledger.db")
    num_open = 0
    with Ledger.open(folder / "ledger.db", read_only=True) as ledger:
        ledger.verify()
        for balance in ledger.balances():
            made = steps[balance.owner]
            assert sum(event.num_steps for event in events[balance.owner]) >= made
            assert (balance.spent or 0.0) >= epsilon([step] * made, 0.02)
            assert (balance.spent or 0.0) <= 4.0
            num_open += balance.num_open
    return num_open, sum(steps.values())


def kill_again_and_again(
    bert: Path, tmp_path: Path, *, num_kills: int, seed: int, order: str = "early"
) -> Counter[str]:
    """Kills runs at that many moments, five a run, and then lets each run finish."""
    config = run_config(bert, tmp_path, **SETTINGS)  # type: ignore[arg-type]
    (tmp_path / "config.json").write_text(config.model_dump_json(), encoding="utf-8")
    plan = plan_run(dict.fromkeys(CLIENTS, 10), config.federation, config.privacy)
    dp = plan.clients[CLIENTS[0]].dp
    assert dp is not None
    step, dice, hits = dp.event(1), random.Random(seed), Counter[str]()
    released = tmp_path / "released.txt"
    with nursery(tmp_path / "config.json", released, order) as runs_of:
        released.touch()
        started = time.perf_counter()
        runs_of.start(tmp_path / "undisturbed")
        assert runs_of.read() == "done"
        whole_s = time.perf_counter() - started
        number = 0
        while hits.total() < num_kills:
            number += 1
            folder = tmp_path / f"run-{number}"
            released.write_text("", encoding="utf-8")
            before = (0, 0)
            for _ in range(5):
                child = runs_of.start(folder)
                until = time.perf_counter() + dice.random() * whole_s
                # The control aims: at the steps between the first release and its late charge.
                while time.perf_counter() < until or (
                    order == "late" and not released.stat().st_size
                ):
                    if order == "late" and released.stat().st_size:
                        break
                with contextlib.suppress(ProcessLookupError):  # it was faster
                    os.kill(child, signal.SIGKILL)
                if runs_of.read() == "done":
                    whole_s *= 0.8
                    break
                after = check(folder, released, step)
                moment = _moment(before, after)
                # Where the machine became slower, kills would all come before anything happened.
                whole_s *= 1.03 if moment == NOTHING else 1.0
                hits[moment] += 1
                before = after
            runs_of.start(folder)
            assert runs_of.read() == "done", "the run cannot go on"
            check(folder, released, step)
    return hits


NOTHING = "nothing in between"


def _moment(before: tuple[int, int], after: tuple[int, int]) -> str:
    if after == before:
        return NOTHING
    return "between reserve and commit" if after[0] > before[0] else "after a commit"


def test_20_kills_of_runs(tiny_bert: Path, tmp_path: Path) -> None:
    kill_again_and_again(tiny_bert, tmp_path, num_kills=20, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_200_kills_of_runs(tiny_bert: Path, tmp_path: Path) -> None:
    hits = kill_again_and_again(tiny_bert, tmp_path, num_kills=200, seed=2)
    assert all(hits[moment] >= 5 for moment in hits), hits
    assert len(hits) == 3, hits


def test_the_kills_find_a_charge_that_comes_late(tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        kill_again_and_again(tiny_bert, tmp_path, num_kills=20, seed=3, order="late")


CHILD = """
import sys
from pathlib import Path

import torch

torch.set_num_threads(1)
from fedpeft.config import RunConfig
from fedpeft.simulate import simulate
from tests.federated.small_runs import Watcher

class Dying(Watcher):
    def step_finished(self, *arguments):
        print("step", flush=True)

config = RunConfig.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
simulate(config, Path(sys.argv[2]), Dying())
"""


@pytest.mark.parametrize(
    "num_steps", [6, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 13))]
)
def test_a_killed_command_resumes_to_its_report(
    tiny_bert: Path, tmp_path: Path, num_steps: int
) -> None:
    config = run_config(tiny_bert, tmp_path, **SETTINGS)  # type: ignore[arg-type]
    (tmp_path / "config.json").write_text(config.model_dump_json(), encoding="utf-8")
    folder = tmp_path / "run"
    command = [sys.executable, "-c", CHILD, str(tmp_path / "config.json"), str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for _ in range(num_steps):
            assert child.stdout.readline() == "step\n", "the run ended before it could be killed"
        child.kill()
        assert child.wait() == -signal.SIGKILL
    before = charged(folder / "ledger.db")
    report = resume(folder, Watcher())
    assert [record.round for record in report.rounds] == [1, 2, 3]
    assert (folder / "report.json").is_file()
    took_part = Counter(client for record in report.rounds for client in record.cohort)
    after = charged(folder / "ledger.db")
    for client in report.clients:
        events = after[client.client_id]
        assert events[: len(before[client.client_id])] == before[client.client_id]
        assert len(events) >= took_part[client.client_id]
        assert client.epsilon == epsilon(events, 0.02)
        assert client.epsilon <= 4.0
    with Ledger.open(folder / "ledger.db") as ledger:
        assert str(ledger.verify()) == report.privacy.ledger_head
