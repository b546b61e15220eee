"""`fedpeft bench simulate` as a command, with stand-ins for the arms."""

import json
import sys
from pathlib import Path

import pytest

from fedpeft.bench import stack_arms
from fedpeft.bench.process import ProcessCost
from fedpeft.bench.stack_arms import Outcome
from fedpeft.cli.bench_simulate import simulate
from fedpeft.errors import ConfigError, VerificationError
from tests.tiny_models import write_rows

ARM = """import json, sys
result = dict(seconds={{}}, num_examples={num_rows}, num_tokens=9, num_padded_tokens=9)
result |= dict(accuracy=0.75, delta_norm=0.5, stack=dict(torch="2"))
open(sys.argv[2], "w").write(json.dumps(result))
"""


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of rows; fedpeft itself is replaced by an outcome."""
    cost = ProcessCost(seconds=10.0, peak_bytes=100)
    outcome = Outcome(
        seconds=10.0,
        cost=cost,
        phases={"rounds": 4.0},
        accuracy=0.75,
        delta_norm=1.0,
        result=None,
        charged_steps=[4, 4],
    )
    monkeypatch.setattr(stack_arms, "_FEDPEFT", (sys.executable, "-c", "pass"))
    monkeypatch.setattr(stack_arms, "_ours", lambda cost, folder: outcome)
    write_rows(tmp_path / "train.jsonl", 128, seed=1)
    write_rows(tmp_path / "validation.jsonl", 8, seed=2)
    return tmp_path


def run(data: Path, model: Path, *, num_rows: int, as_json: bool = False) -> None:
    arm = data / "careful.py"
    arm.write_text(ARM.format(num_rows=num_rows))
    simulate(
        data=data,
        output=data / "out",
        stack=[arm],
        clients=2,
        rounds=1,
        local_steps=4,
        batch_size=8,
        model=str(model),
        repetitions=1,
        num_cpus=1,
        as_json=as_json,
    )


def test_report_and_figure(data: Path, tiny_bert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(data, tiny_bert, num_rows=64, as_json=True)
    printed = capsys.readouterr()
    written = (data / "out" / "bench.json").read_text()
    assert printed.out == written
    assert "careful" in printed.err
    report = json.loads(written)
    assert report["benchmark"] == "simulate"
    assert report["cases"][0]["ratios"][0]["at_most"] == 0.5
    assert "<svg" in (data / "out" / "bench.svg").read_text()


def test_other_work_fails_after_it_was_written(
    data: Path, tiny_bert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(VerificationError, match="careful, run 1: rows trained"):
        run(data, tiny_bert, num_rows=1)
    assert "FAILED careful, run 1: rows trained" in capsys.readouterr().out
    assert (data / "out" / "bench.json").is_file()


def test_refused_before_anything_runs(data: Path, tiny_bert: Path) -> None:
    with pytest.raises(ConfigError, match="iid or dirichlet"):
        simulate(data=data, output=data / "out", partition="column")
    (data / "validation.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"validation\.jsonl"):
        run(data, tiny_bert, num_rows=64)
    assert not (data / "out").exists()
