from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from pydantic import ValidationError

from fedpeft.bench.environment import device_named, new_report
from fedpeft.bench.interleave import paired_ratio
from fedpeft.bench.schema import ArmReport, BenchReport, CaseReport
from fedpeft.bench.write import write_bench
from fedpeft.errors import ConfigError


def programs(seconds: dict[str, list[float]]) -> BenchReport:
    """Whole programs as arms, a few repetitions: no interval and no memory."""
    (first, above), *others = seconds.items()
    case = CaseReport(
        name="a federation",
        settings={"num_clients": 6, "rows": "6 x 100"},
        arms=[
            ArmReport(name=name, description="a program", seconds=values, metrics={"accuracy": 0.9})
            for name, values in seconds.items()
        ],
        ratios=[paired_ratio("seconds", (first, name), above, below) for name, below in others],
        checks=[],
    )
    return new_report(
        "simulate", [case], seed=1, num_blocks=3, num_warmup_blocks=0, device=torch.device("cpu")
    )


def test_whole_programs_fit_the_same_report(tmp_path: Path):
    report = programs({"fedpeft": [9.0, 8.0, 9.5], "other": [90.0, 900.0, 95.0]})
    for folder in ("one", "two"):
        write_bench(report, tmp_path / folder)
    content = (tmp_path / "one" / "bench.json").read_text()
    assert BenchReport.model_validate_json(content, strict=True) == report
    drawn = [(tmp_path / folder / "bench.svg").read_bytes() for folder in ("one", "two")]
    assert drawn[0] == drawn[1]
    assert ElementTree.fromstring(drawn[0]).tag.endswith("svg")


def test_a_figure_that_is_no_number_is_refused():
    with pytest.raises(ValidationError):
        programs({"fedpeft": [float("nan")], "other": [1.0]})


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_named("auto").type == "cpu"
    with pytest.raises(ConfigError, match="no CUDA device here"):
        device_named("cuda")
