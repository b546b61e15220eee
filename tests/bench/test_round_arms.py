"""Both arms as they are, with tensors that weigh nothing."""

from pathlib import Path

import pytest

from fedpeft.bench.rounds import OURS, STOCK, RoundSettings, run_rounds
from tests.bench.test_round import TINY, ratios

PROGRAMS = Path(__file__).parents[2] / "benchmarks" / "rounds"


@pytest.mark.slow
def test_both_arms_do_the_same_rounds(tmp_path: Path):
    settings = RoundSettings(programs=PROGRAMS, num_blocks=1, deadline_s=400.0, seed=0)
    report = run_rounds(TINY, 2, settings, output=tmp_path)
    assert [check.name for check in report.checks if not check.has_passed] == []
    assert ratios(report)["seconds", OURS, STOCK].is_met
