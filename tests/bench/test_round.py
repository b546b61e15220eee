from collections.abc import Mapping
from pathlib import Path

import pytest

from fedpeft.adapters import lora
from fedpeft.bench import round_job
from fedpeft.bench.dialogue import Dialogue
from fedpeft.bench.round_job import LLAMA_8B, MINILM, Payload
from fedpeft.bench.rounds import OURS, STOCK, RoundSettings, run_rounds
from fedpeft.bench.schema import CaseReport, RatioReport
from fedpeft.errors import ConfigError, VerificationError

TINY = Payload(
    name="tiny",
    num_layers=1,
    num_inputs=32,
    num_query_outputs=24,
    num_value_outputs=8,
    rank=2,
)
ARM = """
import json, sys
job = json.load(open(sys.argv[1]))
print("ready", flush=True)
for number in range(job["num_rounds"]):
    sys.stdin.readline()
    print({seconds} if number else 99, flush=True)
wire_bytes = {share} * job["num_clients"] * job["num_rounds"] * {tensor_bytes}
result = {{"error": {error}, "wire_bytes": int(wire_bytes), "stack": {{"made": "up"}}}}
json.dump(result, open(sys.argv[2], "w"))
"""


def settings(programs: Path, num_blocks: int = 2) -> RoundSettings:
    return RoundSettings(programs=programs, num_blocks=num_blocks, deadline_s=60.0, seed=0)


def programs(folder: Path, **changed: float) -> Path:
    """Arms that only say that they did something."""
    about = {"share": 1.01, "error": 0.0, "tensor_bytes": TINY.down_bytes + TINY.up_bytes}
    (folder / "ours.py").write_text(ARM.format(seconds=0.5, **about | changed))
    (folder / "flower.py").write_text(ARM.format(seconds=2.0, **about))
    return folder


def ratios(report: CaseReport) -> Mapping[tuple[str, str, str], RatioReport]:
    return {(ratio.quantity, ratio.numerator, ratio.denominator): ratio for ratio in report.ratios}


def test_payloads_are_those_of_the_models():
    assert (MINILM.down_bytes, MINILM.up_bytes, len(MINILM.trained)) == (294_912, 147_456, 12)
    assert (LLAMA_8B.up_bytes, len(LLAMA_8B.trained)) == (10_485_760, 64)
    assert (round_job.LORA_A, round_job.LORA_B) == (lora.LORA_A, lora.LORA_B)


def test_rounds_are_paired_and_the_first_does_not_count(tmp_path: Path):
    report = run_rounds(TINY, 2, settings(programs(tmp_path), 3), output=tmp_path / "out")
    assert [arm.seconds for arm in report.arms] == [[0.5] * 3, [2.0] * 3]
    found = ratios(report)
    time, wire = found["seconds", OURS, STOCK], found["wire_bytes", OURS, "tensors"]
    assert (time.median, time.is_met) == (0.25, True)
    assert wire.median == pytest.approx(1.01, abs=1e-3)
    assert wire.is_met
    assert all(check.has_passed for check in report.checks)


@pytest.mark.parametrize(
    ("changed", "failed"),
    [
        ({"error": 0.01}, "fedpeft: the last adapter"),
        ({"share": 0.9}, "fedpeft: all tensors travelled"),
    ],
)
def test_an_arm_that_did_not_do_the_work_is_found(
    tmp_path: Path, changed: dict[str, float], failed: str
):
    report = run_rounds(TINY, 2, settings(programs(tmp_path, **changed)), output=tmp_path / "out")
    assert failed in [check.name for check in report.checks if not check.has_passed]


def test_an_arm_that_ends_early_is_quoted(tmp_path: Path):
    programs(tmp_path)
    (tmp_path / "flower.py").write_text("print('ready', flush=True); raise SystemExit('no luck')")
    with pytest.raises(VerificationError, match="no luck"):
        run_rounds(TINY, 2, settings(tmp_path), output=tmp_path / "out")


def test_a_program_that_says_nothing_is_ended(tmp_path: Path):
    command = ["python", "-c", "import threading; threading.Event().wait()"]
    with (
        Dialogue(command, tmp_path / "log") as program,
        pytest.raises(VerificationError, match="said nothing"),
    ):
        program.hear(0.2)


def test_programs_that_are_not_there_are_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"benchmarks/rounds"):
        settings(tmp_path).check()
