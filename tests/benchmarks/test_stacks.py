"""The contract of every stack, on a tiny model: real processes, Ray where the stack uses it."""

import json
import sys
from pathlib import Path

import pytest

from fedpeft.bench.process import ProcessCost, run_program
from fedpeft.bench.simulate import checks, run_stacks
from fedpeft.bench.stack_arms import Arms, Outcome
from fedpeft.bench.stack_job import StackResult, StackSettings, prepare_job
from tests.tiny_models import write_rows

STACKS = Path(__file__).parents[2] / "benchmarks" / "stacks"
pytestmark = pytest.mark.slow


def settings(tiny_bert: Path, folder: Path, **changed: int) -> StackSettings:
    return StackSettings(
        model=str(tiny_bert),
        train=str(write_rows(folder / "all.jsonl", 128, seed=1)),
        test=str(write_rows(folder / "test.jsonl", 16, seed=2)),
        max_length=24,
        **{
            "num_clients": 2,
            "num_rounds": 1,
            "local_steps": 8,
            "expected_batch_size": 8,
            "num_cpus": 1,
            **changed,
        },
    )


def run(name: str, given: StackSettings, folder: Path) -> StackResult:
    """Runs one stack; every check must pass."""
    prepared = prepare_job(given, folder)
    result = folder / "result.json"
    program = [sys.executable, str(STACKS / f"{name}.py")]
    run_program([*program, str(folder / "job.json"), str(result)], folder / "log")
    read = StackResult.model_validate_json(result.read_bytes())
    outcome = Outcome(
        seconds=1.0,
        cost=ProcessCost(seconds=1.0, peak_bytes=1),
        phases={},
        accuracy=read.accuracy,
        delta_norm=read.delta_norm,
        result=read,
        charged_steps=[],
    )
    assert all(check.has_passed for check in checks(name, outcome, prepared))
    assert 0 <= read.accuracy <= 1
    assert 2 * read.num_examples < read.num_tokens <= read.num_padded_tokens
    return read


def test_tutorial_pads_every_row(tiny_bert: Path, tmp_path: Path) -> None:
    pytest.importorskip("flwr")
    pytest.importorskip("ray")
    result = run("tutorial", settings(tiny_bert, tmp_path), tmp_path)
    assert result.num_padded_tokens == 24 * result.num_examples
    assert result.stack["actors"] == "1, 1 torch thread(s) each"


def test_careful_pads_batches_and_takes_empty_ones(tiny_bert: Path, tmp_path: Path) -> None:
    """One row expected in a batch: of 40 batches about 15 are empty."""
    pytest.importorskip("flwr")
    pytest.importorskip("ray")
    given = settings(tiny_bert, tmp_path, expected_batch_size=1, num_rounds=2, local_steps=10)
    result = run("careful", given, tmp_path)
    assert result.num_padded_tokens < 16 * result.num_examples
    assert result.stack["actors"] == "1, 1 torch thread(s) each"


def test_floor_and_fedpeft(tiny_bert: Path, tmp_path: Path) -> None:
    """The whole harness with what needs no Ray."""
    arms = Arms(stacks=[], floor=STACKS / "nonprivate.py", fedpeft_args=["--set", "output.name=x"])
    given = settings(tiny_bert, tmp_path, num_cpus=2)
    case = run_stacks(given, arms, num_blocks=1, output=tmp_path / "out")
    assert all(check.has_passed for check in case.checks)
    ours, floor = case.arms
    assert ours.metrics["process_seconds"] == ours.seconds[0]
    assert floor.seconds[0] == min(
        floor.metrics["seconds_one_process_all_threads"],
        floor.metrics["seconds_one_thread_each_process"],
    )
    result = json.loads((tmp_path / "out" / "runs" / "nonprivate-1.json").read_text())
    assert result["num_padded_tokens"] < 16 * result["num_examples"]
