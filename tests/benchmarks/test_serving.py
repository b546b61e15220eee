"""benchmarks/serving.py on a small model: its arms say the same, and its ratios are there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "serving.py"


@pytest.mark.parametrize(("kind", "task"), [("llama", "causal-lm"), ("bert", "classification")])
def test_all_arms_are_held_against_the_mixed_batch(
    kind: str, task: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    modules = {"llama": ["q_proj"], "bert": ["query"]}[kind]
    output = tmp_path / "out" / "serving.json"
    command = [sys.executable, str(PROGRAM), "--task", task, "--output", str(output)]
    command += ["--model", str(request.getfixturevalue(f"tiny_{kind}")), "--modules", *modules]
    command += ["--adapters", "3", "--new-tokens", "4", "--blocks", "6", "--vocabulary", "30"]
    subprocess.run(command, check=True)
    found = json.loads(output.read_text())
    assert set(found["seconds"]) == {"mixed", "swap", "reload", "peft"}
    assert all(len(seconds) == 6 for seconds in found["seconds"].values())
    assert len(found["ratios"]) == 6
    assert all(ratio["low"] <= ratio["median"] <= ratio["high"] for ratio in found["ratios"])
