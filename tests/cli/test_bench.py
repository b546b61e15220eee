"""`fedpeft bench` as a user runs it: exit codes, what is printed, what is left behind."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from fedpeft.bench import dp_step
from fedpeft.bench.cases import PRESETS
from fedpeft.bench.environment import new_report
from fedpeft.bench.interleave import paired_ratio
from fedpeft.bench.schema import ArmReport, BenchReport, CaseReport, CheckReport, MemoryReport
from fedpeft.cli.bench_view import tables
from fedpeft.cli.main import run

Fedpeft = Callable[..., tuple[int, str, str]]
FAST = ("--rows", 3, "--tokens", 6, "--rank", 2, "--blocks", 6, "--warmup", 0, "--no-memory")


@pytest.fixture
def fedpeft(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Fedpeft:
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedpeft", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            run()
        printed = capsys.readouterr()
        return int(exit_info.value.code or 0), printed.out, printed.err.strip()

    return call


def test_dp_step_of_a_model_of_ones_own(fedpeft: Fedpeft, tiny_llama: Path, tmp_path: Path):
    code, out, err = fedpeft(
        "bench", "dp-step", "--model", tiny_llama, "--task", "causal-lm", *FAST,
        "--targets", "q_proj", "--targets", "v_proj", "--json", "--output", tmp_path / "out",
    )  # fmt: skip
    assert (code, err) == (0, "")
    report = BenchReport.model_validate_json(out, strict=True)
    assert (tmp_path / "out" / "bench.json").read_text() == out
    assert ElementTree.parse(tmp_path / "out" / "bench.svg").getroot().tag.endswith("svg")
    (case,) = report.cases
    assert case.name == "own-3x6"
    assert case.settings["target_modules"] == "q_proj v_proj"
    assert len(case.arms) == 4
    assert all(len(arm.seconds) == report.num_blocks == 6 for arm in case.arms)
    assert report.failed_checks == []
    assert report.versions["opacus"]
    assert report.hardware["torch_threads"] == "1"


def test_noise(fedpeft: Fedpeft):
    code, out, err = fedpeft("bench", "noise", 2000, "--case", "", "--blocks", 6, "--json")
    assert (code, err) == (0, "")
    report = BenchReport.model_validate_json(out, strict=True)
    assert [case.settings["dimension"] for case in report.cases] == [2000]


def test_a_failed_check_is_exit_code_3_and_the_figures_are_kept(
    fedpeft: Fedpeft, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    honest = dp_step.clipped_sum
    monkeypatch.setattr(dp_step, "clipped_sum", lambda grads, clip: honest(grads, clip / 2))
    code, out, err = fedpeft(
        "bench", "dp-step", "--model", tiny_bert, "--targets", "query", *FAST, "--no-opacus",
        "--quiet", "--output", tmp_path / "out",
    )  # fmt: skip
    assert code == 3
    assert err.startswith("error: the arms do not compute the same: own-3x6: fedpeft: clipped sum")
    assert "FAILED" in out
    assert json.loads((tmp_path / "out" / "bench.json").read_text())["cases"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("dp-step", "minilm-16x23"), "did you mean 'minilm-16x32'?"),
        (("dp-step", "smollm2-8x64"), "smollm2-8x64 needs a model: give its folder with --model"),
        (("dp-step", "minilm-16x32", "--model", "x"), "minilm-16x32 has a model of its own"),
        (("dp-step", "minilm-16x32", "--task", "causal-lm"), "--task goes with --model alone"),
        (("dp-step", "minilm-16x32", "minilm-16x32"), "name each case once"),
        (("dp-step", "--rows", "4"), "options change a named case"),
        (("dp-step", "--model", "./nowhere"), "needs --targets"),
        (("dp-step", "--model", "./nowhere", "--targets", "query"), "no model folder ./nowhere"),
        (("dp-step", "minilm-16x32", "--targets", "qery"), "'qery' matches no linear module"),
        (("dp-step", "minilm-16x32", "--rank", "400"), "rank 400 is larger than module"),
        (("dp-step", "minilm-16x32", "--tokens", "600"), "at most 512 tokens, got 600"),
        (("dp-step", "minilm-16x32", "--dtype", "float16"), "dtype: Input should be"),
        (("dp-step", "minilm-16x32", "--device", "tpu"), "must be auto, cpu or cuda, got 'tpu'"),
        (("dp-step", "--blocks", "0"), "--blocks"),
        (("dp-step", "--rows", "1"), "--rows"),
        (("noise", "1"), "1"),
        (("noise", "2000000000"), "at most 1,000,000,000"),
        (("noise", "5000", "5000"), "name each number of draws once"),
        (("noise", "5000", "--case", "minilm"), "there is no case 'minilm'"),
    ],
)
def test_bad_input_is_refused(
    fedpeft: Fedpeft, tmp_path: Path, arguments: tuple[str, ...], expected: str
):
    code, out, err = fedpeft("bench", *arguments, "--output", tmp_path / "out", "--quiet")
    assert code == 2, err
    assert expected in err
    assert "Traceback" not in err
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_refused_before_anything_runs(fedpeft: Fedpeft, tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    code, _, err = fedpeft("bench", "dp-step", "--output", tmp_path)
    assert code == 2
    assert "already holds something" in err


def test_tables_say_which_target_was_missed():
    import torch

    def arm(name: str, seconds: float, peak: int) -> ArmReport:
        memory = MemoryReport(method="known", loaded_bytes=1_000_000, peak_bytes=peak)
        return ArmReport(
            name=name, description="", seconds=[seconds] * 6, cpu_seconds=[], memory=memory
        )

    pair = ("fedpeft", "non-private")
    case = CaseReport(
        name="a case",
        settings={},
        arms=[arm("non-private", 0.5, 2_000_000), arm("fedpeft", 0.6, 2_100_000)],
        ratios=[
            paired_ratio("seconds", pair, [0.6] * 6, [0.5] * 6, at_most=1.05),
            paired_ratio("peak_memory", pair, [2.1], [2.0], at_most=1.25),
        ],
        checks=[CheckReport(name="a = b", error=None, tolerance=1e-4, measure="relative")],
        notes=["[bold]no markup[/bold]"],
    )
    report = new_report(
        "dp-step",
        [case],
        seed=0,
        num_blocks=6,
        num_warmup_blocks=0,
        device=torch.device("cpu"),
    )
    console = Console(width=100)
    with console.capture() as capture:
        console.print(tables(report))
    shown = capture.get()
    assert "time <= 1.05: 1.200 MISSED" in shown
    assert "memory <= 1.25: 1.050 met" in shown
    assert "1.200 [1.200, 1.200]" in shown
    assert "500.0 ms" in shown
    assert "FAILED a = b: not finite" in shown
    assert "[bold]no markup[/bold]" in shown
    assert report.failed_checks == ["a case: a = b"]


def test_help_names_every_case(fedpeft: Fedpeft):
    _, out, _ = fedpeft("bench", "dp-step", "--help")
    assert [name for name in PRESETS if name not in out] == []
