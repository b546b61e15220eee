"""The harness: blocks, what counts as time, and arms that did not do the work."""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from fedpeft.bench import stack_arms
from fedpeft.bench.process import ProcessCost
from fedpeft.bench.schema import CaseReport
from fedpeft.bench.simulate import run_stacks
from fedpeft.bench.stack_arms import Arms, Outcome
from fedpeft.bench.stack_job import StackSettings
from fedpeft.errors import ConfigError, VerificationError
from tests.tiny_models import write_rows

# One round of two clients, 4 steps, 8 rows expected in each batch: 64 rows.
RIGHT: dict[str, Any] = {
    "seconds": {"rounds": 2.0},
    "num_examples": 64,
    "num_tokens": 500,
    "num_padded_tokens": 700,
    "accuracy": 0.75,
    "delta_norm": 0.5,
    "stack": {"torch": "2"},
}
ARM = '''"""A stack of its own.

More about it.
"""
import pathlib, sys
pathlib.Path(sys.argv[2]).write_text({text!r})
'''

Run = Callable[..., CaseReport]


@pytest.fixture
def run(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs stand-in programs; fedpeft itself is replaced by an outcome."""
    monkeypatch.setattr(stack_arms, "_FEDPEFT", (sys.executable, "-c", "pass"))

    def ours(cost: ProcessCost, folder: Path) -> Outcome:
        return Outcome(
            seconds=10.0,
            cost=ProcessCost(seconds=10.0, peak_bytes=100),
            phases={"rounds": 4.0},
            accuracy=0.75,
            delta_norm=1.0,
            result=None,
            charged_steps=[4, 4],
        )

    monkeypatch.setattr(stack_arms, "_ours", ours)
    settings = StackSettings(
        model=str(tiny_bert),
        train=str(write_rows(tmp_path / "all.jsonl", 128, seed=1)),
        test=str(write_rows(tmp_path / "test.jsonl", 8, seed=2)),
        num_clients=2,
        num_rounds=1,
        local_steps=4,
        expected_batch_size=8,
    )

    def start(
        results: Mapping[str, dict[str, Any]], *, floor: str | None = None, **given: Any
    ) -> CaseReport:
        paths = {name: tmp_path / f"{name}.py" for name in results}
        for name, path in paths.items():
            path.write_text(ARM.format(text=json.dumps(results[name])))
        arms = Arms(
            stacks=[path for name, path in paths.items() if name != floor],
            floor=paths[floor] if floor else None,
            once=given.pop("once", frozenset()),
        )
        return run_stacks(settings, arms, output=tmp_path / "out", **given)

    return start


def failed(case: CaseReport) -> list[str]:
    return [check.name for check in case.checks if not check.has_passed]


def test_blocks_and_ratios(run: Run, tmp_path: Path) -> None:
    """The floor counts its loop alone, and an arm that runs once is paired with its own block."""
    floor = {**RIGHT, "seconds": {"forward_backward": 8.0}}
    calls: list[str] = []
    case = run(
        {"slow": RIGHT, "careful": RIGHT, "nonprivate": floor},
        floor="nonprivate",
        num_blocks=3,
        once=frozenset({"slow"}),
        advanced=lambda name, seconds: calls.append(name),
    )
    assert not failed(case)
    assert sorted(calls) == sorted(["slow", *["fedpeft", "careful", "nonprivate"] * 3])
    assert [arm.name for arm in case.arms] == ["fedpeft", "slow", "careful", "nonprivate"]
    assert [len(arm.seconds) for arm in case.arms] == [3, 1, 3, 3]
    assert case.arms[1].description == "A stack of its own."
    assert case.arms[3].seconds == [8.0] * 3
    of = {r.denominator: r for r in case.ratios if r.quantity == "seconds"}
    assert (of["nonprivate"].median, of["nonprivate"].at_most) == (1.25, 1.3)
    assert (of["nonprivate"].low, of["nonprivate"].confidence) == (1.25, 0.75)
    assert (of["slow"].num_pairs, of["slow"].low, of["slow"].at_most) == (1, None, None)
    assert (of["careful"].num_pairs, of["careful"].at_most) == (3, 0.5)
    assert any("75%" in note for note in case.notes)
    logs = {path.name for path in (tmp_path / "out" / "runs").iterdir()}
    assert {"slow-1.log", "slow-1.json", "careful-3.json", "fedpeft-2.log"} <= logs
    assert "slow-2.log" not in logs
    assert str(tmp_path) not in case.model_dump_json()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"delta_norm": 0.0}, "careful, run 1: the trained tensors changed"),
        ({"num_examples": 0}, "careful, run 1: rows trained"),
        ({"num_examples": 128}, "careful, run 1: rows trained"),
    ],
)
def test_an_arm_that_did_not_train_is_refused(
    run: Run, change: dict[str, Any], complaint: str
) -> None:
    assert failed(run({"careful": {**RIGHT, **change}}, num_blocks=1)) == [complaint]


def test_our_arm_is_held_to_its_plan(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that was not charged, or trained one step less, is seen."""
    real = stack_arms._ours
    for steps in ([4, 3], [4]):

        def ours(cost: ProcessCost, folder: Path, steps: list[int] = steps) -> Outcome:
            return Outcome(**{**vars(real(cost, folder)), "charged_steps": steps})

        monkeypatch.setattr(stack_arms, "_ours", ours)
        assert failed(run({}, num_blocks=1)) == ["fedpeft, run 1: steps charged"]


def test_accuracy_of_a_constant_is_noted(run: Run) -> None:
    case = run({"careful": {**RIGHT, "accuracy": 0.5}}, num_blocks=1)
    assert [note for note in case.notes if note.startswith("careful: accuracy")]
    assert not [note for note in case.notes if note.startswith("fedpeft: accuracy")]


@pytest.mark.parametrize("result", [{}, {**RIGHT, "delta_norm": float("nan")}, {**RIGHT, "x": 1}])
def test_a_result_that_is_none_is_refused(run: Run, result: dict[str, Any]) -> None:
    with pytest.raises(VerificationError, match="wrote a result that is none"):
        run({"careful": result}, num_blocks=1)


def test_a_floor_reports_its_loop(run: Run) -> None:
    with pytest.raises(VerificationError, match="forward_backward"):
        run({"nonprivate": RIGHT}, floor="nonprivate", num_blocks=1)


def test_a_missing_result_is_refused(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "ARM", "# {text!r}: does nothing\n")
    with pytest.raises(VerificationError, match="wrote no"):
        run({"careful": RIGHT}, num_blocks=1)


def test_arms_that_cannot_be_told_apart(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none is 'fedpeft'"):
        run({"fedpeft": RIGHT}, num_blocks=1)
    with pytest.raises(ConfigError, match="--once names tutorial"):
        run({"careful": RIGHT}, num_blocks=1, once=frozenset({"tutorial"}))
