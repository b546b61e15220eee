"""A process that is killed in the middle of a round, and the run that goes on without it."""

import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from fedpeft import simulate as runs
from fedpeft.dp.accounting import DpSgdEvent, epsilon
from fedpeft.federated.journal import Journal
from tests.federated.small_runs import SECRET, Watcher, run_config

CHILD = """
import sys
from pathlib import Path

import torch

torch.set_num_threads(1)
from fedpeft.config import RunConfig
from fedpeft.simulate import simulate
from tests.federated.small_runs import Watcher

config = RunConfig.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
simulate(config, Path(sys.argv[2]), Watcher())
"""
DEADLINE_S = 120
STEPS, NUM_ROUNDS = 40, 2


def kill_after(num_reservations: int, bert: Path, tmp_path: Path) -> Path:
    """Kills a run once that many reservations are on disk; returns its folder."""
    config = run_config(
        bert, tmp_path, privacy=SECRET, local_steps=STEPS, num_rounds=NUM_ROUNDS, learning_rate=0.05
    )
    (tmp_path / "config.json").write_text(config.model_dump_json(), encoding="utf-8")
    folder = tmp_path / "run"
    journal = folder / "journal.jsonl"
    root = Path(__file__).parents[2]
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path / "config.json"), str(folder)], cwd=root
    )
    try:
        deadline = time.monotonic() + DEADLINE_S
        while not (journal.exists() and journal.read_bytes().count(b"\n") >= num_reservations):
            assert child.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline, "the run never got that far"
            time.sleep(0.002)
    finally:
        child.kill()
        code = child.wait()
    assert code == -signal.SIGKILL
    return folder


@pytest.mark.parametrize(
    "num_reservations", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3, 4, 6))]
)
def test_a_killed_run_finishes_and_never_reports_less_than_was_released(
    tiny_bert: Path, tmp_path: Path, num_reservations: int
) -> None:
    folder = kill_after(num_reservations, tiny_bert, tmp_path)
    reserved = Journal(folder / "journal.jsonl")
    before = {f"client-0{i}": list(reserved.events(f"client-0{i}")) for i in range(3)}
    assert sum(map(len, before.values())) >= num_reservations

    report = runs.resume(folder, Watcher())
    assert [record.round for record in report.rounds] == [1, 2]
    assert (folder / "report.json").is_file()
    released = Counter(client for record in report.rounds for client in record.cohort)
    journal = Journal(folder / "journal.jsonl")
    for client in report.clients:
        events = list(journal.events(client.client_id))
        assert events[: len(before[client.client_id])] == before[client.client_id]
        assert len(events) >= released[client.client_id]
        one = events[0]
        assert isinstance(one, DpSgdEvent)
        assert one.num_steps == STEPS
        assert client.epsilon == epsilon(events, 0.02)
        assert client.epsilon >= epsilon([one] * released[client.client_id], 0.02)
        assert client.epsilon <= 4.0
    # Who was in training when the process died paid for it, and could not take part to the end.
    charged = sum(len(journal.events(client.client_id)) for client in report.clients)
    assert charged >= sum(released.values())
