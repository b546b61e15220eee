"""Truth ratios, forget quality, model utility and extraction, on numbers small enough to check."""

import math

import numpy as np
import pytest

from fedpeft.errors import DataError
from fedpeft.unlearning.metrics.extraction import (
    extraction_likelihood,
    memorization_accuracy,
    overlap,
    prefix_lengths,
)
from fedpeft.unlearning.metrics.truth_ratio import (
    forget_quality,
    model_utility,
    truth_ratios,
    truthfulness,
)


def test_truth_ratio_is_wrong_over_right() -> None:
    right = np.array([-math.log(0.5), -math.log(0.2)])
    wrong = [-np.log([0.1, 0.4]), -np.log([0.8])]
    ratios = truth_ratios(right, wrong)
    assert ratios.tolist() == pytest.approx([math.sqrt(0.1 * 0.4) / 0.5, 0.8 / 0.2])
    assert truthfulness(ratios) == pytest.approx((1 - 0.4 + 0.0) / 2)


def test_forget_quality_tells_models_apart() -> None:
    random = np.random.default_rng(0)
    reference, same = random.lognormal(size=200), random.lognormal(size=200)
    assert forget_quality(same, reference) > 0.05
    assert forget_quality(same * 0.3, reference) < 1e-6
    assert forget_quality(reference, reference) == 1.0


def test_model_utility_is_harmonic() -> None:
    assert model_utility([0.5, 1.0]) == pytest.approx(2 / 3)
    assert model_utility([0.9] * 8 + [0.0]) == 0.0


def test_losses_that_are_none_are_refused() -> None:
    with pytest.raises(DataError, match="wrong answer"):
        truth_ratios(np.array([1.0, 2.0]), [np.array([1.0]), np.array([])])
    with pytest.raises(DataError, match="not finite"):
        truth_ratios(np.array([np.nan]), [np.array([1.0])])


def test_overlap_counts_what_is_said() -> None:
    assert overlap([1, 2, 3, 9], [7, 1, 2, 3], 2) == pytest.approx(2 / 3)
    assert overlap([1], [1, 2], 2) == 0.0


TEXT = [4, 8, 15, 16, 23, 42]


def test_a_text_known_by_heart_is_extracted_whole() -> None:
    lengths = prefix_lengths(TEXT, 1, 3)
    assert list(lengths) == [1, 2, 3]
    assert extraction_likelihood(TEXT, [TEXT[t:] for t in lengths], 3) == 1.0
    assert extraction_likelihood(TEXT, [[0] * 5 for _ in lengths], 3) == 0.0


def test_extraction_is_the_mean_over_prefixes() -> None:
    """After 15 it knows the rest; before that it says something else."""
    said = [TEXT[t:] if TEXT[t - 1] == 15 else [0, 0] for t in prefix_lengths(TEXT, 1, 2)]
    assert extraction_likelihood(TEXT, said, 2) == pytest.approx(1 / 4)
    said = [TEXT[t:] if TEXT[t - 1] == 15 else [0, 0] for t in prefix_lengths(TEXT, 3, 2)]
    assert extraction_likelihood(TEXT, said, 2) == pytest.approx(1 / 2)


@pytest.mark.parametrize("num", [0, 5])
def test_continuations_that_do_not_fit_are_refused(num: int) -> None:
    with pytest.raises(DataError, match="do not fit"):
        extraction_likelihood(TEXT, [[1, 2]] * num, 2)


def test_memorization_accuracy() -> None:
    assert memorization_accuracy(TEXT, [8, 15, 0, 23, 0]) == pytest.approx(3 / 5)
    with pytest.raises(DataError, match="expected 5 predictions"):
        memorization_accuracy(TEXT, TEXT)
