"""Estimates with intervals, from one value a row."""

import numpy as np
from scipy.stats import hmean

from fedpeft.dp.membership import auc
from fedpeft.errors import PrivacyError
from fedpeft.unlearning.gate.report import Estimate
from fedpeft.unlearning.gate.shown import Values

_NUM_RESAMPLES = 1000


def mean(values_N: Values, confidence: float) -> Estimate:
    """Returns the mean over rows; the interval is the bootstrap's, of rows drawn again.

    Its random numbers are fixed, so that equal rows give an equal interval.
    """
    rows = np.random.default_rng(0).integers(len(values_N), size=(_NUM_RESAMPLES, len(values_N)))
    return _with_quantiles(float(values_N.mean()), values_N[rows].mean(1), confidence)


def harmonic_mean(parts: list[Values], confidence: float) -> Estimate:
    """Returns the harmonic mean of the parts' means, each with rows of its own."""
    random = np.random.default_rng(0)
    means = np.stack(
        [
            part[random.integers(len(part), size=(_NUM_RESAMPLES, len(part)))].mean(1)
            for part in parts
        ]
    )
    value = float(hmean([max(0.0, float(part.mean())) for part in parts]))
    return _with_quantiles(value, hmean(means.clip(min=0.0), axis=0), confidence)


def membership(forget_N: Values, held_out_N: Values, confidence: float) -> Estimate | None:
    """Returns the AUC of telling rows to be forgotten from rows that nobody trained on (DeLong).

    Returns None where a side has fewer than two rows, or a score is not a number.
    """
    try:
        found = auc(forget_N, held_out_N, confidence)
    except PrivacyError:
        return None
    return Estimate(value=found.value, low=found.low, high=found.high)


def _with_quantiles(value: float, resampled: Values, confidence: float) -> Estimate:
    error = (1 - confidence) / 2
    low, high = np.quantile(resampled, [error, 1 - error])
    return Estimate(value=value, low=min(float(low), value), high=max(float(high), value))
