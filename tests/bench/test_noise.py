from pathlib import Path

import pytest
import torch

from fedpeft.bench import noise
from fedpeft.bench.noise import NUMPY, RELEASE, STEP_NOISE, TORCH, run_draws, run_share
from tests.bench.cases import bert_case, settings


def test_every_generator_draws_the_same_distribution():
    report = run_draws(20_001, settings(num_blocks=6))
    assert [check.has_passed for check in report.checks] == [True] * len(report.arms)
    assert [arm.name for arm in report.arms][:3] == [RELEASE, NUMPY, TORCH]
    assert {ratio.numerator for ratio in report.ratios} == {RELEASE}
    assert all(ratio.num_pairs == 6 for ratio in report.ratios)


@pytest.mark.parametrize(
    ("scale", "shift", "passes"),
    [(1.0, 0.0, True), (2 / 3, 0.0, False), (3 / 2, 0.0, False), (1.0, 0.1, False)],
)
def test_another_distribution_is_found(scale: float, shift: float, passes: bool):
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    assert noise._check_moments("a", scale * values + shift).has_passed is passes


def test_noise_as_a_share_of_the_step(tiny_bert: Path):
    report = run_share(bert_case(tiny_bert), settings(num_blocks=2))
    (ratio,) = report.ratios
    assert (ratio.numerator, ratio.denominator) == (STEP_NOISE, "fedpeft step")
    assert report.settings == {"dimension": 2 * 2 * 32 * 2 + 32 * 8 + 8}
