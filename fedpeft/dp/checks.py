"""Black-box checks of a DP-SGD implementation: each looks at nothing but what was released.

A check drives a `Run` with rows whose gradients it chose, and decides whether the releases are
those of the mechanism that the accountant was told about. Honest runs fail a check with
probability below 1e-5 (`FALSE_ALARM`). `canaries.run_installed` is the run of this installation.
Legend: N rows, D coordinates, S steps.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from fedpeft.dp.mechanism import DpSgdConfig

FALSE_ALARM = 1e-5
_ALPHA = 1e-6
# The mechanism may add up to 0.1 % to the clip norm for rounding, and scales its noise with it.
_ROUNDING = 1.001


class Run(Protocol):
    """Runs DP-SGD on a data set; the model stays where it is."""

    def __call__(
        self, gradients_ND: NDArray[np.float32], config: DpSgdConfig, num_steps: int
    ) -> NDArray[np.float64]:
        """Returns the released means of `num_steps` steps, shape (S, D).

        Row n of the data set has the gradient `gradients_ND[n]` in every step; D is even, and the
        two halves of the coordinates belong to two tensors.
        """


@dataclass(frozen=True)
class Verdict:
    """What a check decided, and the figure that it decided on."""

    passed: bool
    reason: str


def noise_scale(run: Run) -> Verdict:
    """Every coordinate carries noise of stddev noise_multiplier * clip norm / expected batch.

    Gradients of zero leave nothing but the noise. Decides on the chi-squared interval of the
    variance, over 10,000 draws and within each tensor: 7 and 10 % around the stated one.
    """
    config = _config(num_examples=8, expected_batch_size=4.0, noise_multiplier=1.5, clip_norm=0.7)
    released_SD = run(np.zeros((8, 50), np.float32), config, 200)
    stated = config.noise_multiplier * config.l2_clip_norm / config.expected_batch_size
    halves = {"first tensor": released_SD[:, :25], "second tensor": released_SD[:, 25:]}
    for part, values in {"all": released_SD, **halves}.items():
        if not np.isfinite(values).all():
            return Verdict(False, f"{part}: not finite")
        low, high = variance_interval(values.size)
        ratio = float(np.mean((values / stated) ** 2))
        if not low <= ratio <= high * _ROUNDING**2:
            return Verdict(False, f"{part}: variance is {ratio:.3f} of the stated one")
    return Verdict(True, f"variance within [{low:.3f}, {high:.3f}] of the stated one")


def noise_is_independent(run: Run) -> Verdict:
    """Noise of different steps, tensors and coordinates is uncorrelated, and so are its squares."""
    config = _config(num_examples=8, expected_batch_size=4.0, noise_multiplier=1.0)
    noise_SD = run(np.zeros((8, 80), np.float32), config, 120)
    noise_SD = noise_SD / noise_SD.std()
    pairs = {
        "steps": (noise_SD[:-1], noise_SD[1:]),
        "tensors": (noise_SD[:, :40], noise_SD[:, 40:]),
        "neighbours": (noise_SD[:, :-1], noise_SD[:, 1:]),
        "halves of a tensor": (noise_SD[:, :20], noise_SD[:, 20:40]),
    }
    for what, (left, right) in pairs.items():
        for power in (1, 2):
            statistic = correlation_z(left**power, right**power)
            if not abs(statistic) < 5.5:
                return Verdict(False, f"{what}, power {power}: correlated by {statistic:.1f} sigma")
    return Verdict(True, "no correlation beyond 5.5 sigma")


def empty_batches_release_noise(run: Run) -> Verdict:
    """A step without examples releases as much noise as any other.

    One row that is drawn in 5 % of the steps, with a gradient of zero. Decides on the variance.
    """
    config = _config(num_examples=1, expected_batch_size=0.05, noise_multiplier=1.0)
    released_SD = run(np.zeros((1, 10), np.float32), config, 500)
    stated = config.noise_multiplier * config.l2_clip_norm / config.expected_batch_size
    low, high = variance_interval(released_SD.size)
    ratio = float(np.mean((released_SD / stated) ** 2))
    silent = int((released_SD == 0).all(1).sum())
    passed = silent == 0 and low <= ratio <= high * _ROUNDING**2
    return Verdict(passed, f"{silent} of 500 steps silent, variance {ratio:.3f} of the stated one")


def one_example_is_bounded(run: Run) -> Verdict:
    """Adding one example of any size and direction moves the sum by at most the clip norm.

    Every example takes part in every step, and the noise is small, so that the mean over 20 steps
    shows the sum to 1 % of the clip norm. Tried on an example in one tensor and one in both.
    """
    config = _config(num_examples=2, expected_batch_size=2.0, noise_multiplier=0.005)
    for outlier in ([1e4, 0, 0, 0], [1e4, 0, -1e4, 0], [3.0, 3.0, 3.0, 3.0], [1e30, 0, 0, 1e30]):
        rows_ND = np.array([[0.3, 0, 0, 0], outlier], np.float32)
        sums_SD = config.expected_batch_size * run(rows_ND, config, 20)
        moved = float(np.linalg.norm(sums_SD.mean(0) - rows_ND[0]))
        if not moved <= _ROUNDING + 0.01:
            return Verdict(False, f"an example of clip norm 1 moved the sum by {moved:.3g}")
    return Verdict(True, "moved the sum by at most the clip norm")


def each_example_is_clipped_alone(run: Run) -> Verdict:
    """Examples are clipped before they are summed: ten at the clip norm sum to ten times it."""
    config = _config(num_examples=10, expected_batch_size=10.0, noise_multiplier=0.005)
    rows_ND = np.zeros((10, 2), np.float32)
    rows_ND[:, 0] = 5.0
    summed = float(config.expected_batch_size * run(rows_ND, config, 20)[:, 0].mean())
    return Verdict(abs(summed - 10) < 0.05, f"ten examples at the clip norm sum to {summed:.3f}")


def nonfinite_counts_as_zero(run: Run) -> Verdict:
    """An example with NaN or Inf anywhere leaves the sum of the others as it is."""
    config = _config(num_examples=2, expected_batch_size=2.0, noise_multiplier=0.005)
    for poison in (np.nan, np.inf, -np.inf):
        rows_ND = np.array([[0.5, 0, 0, 0.5], [0.1, 0, poison, 0]], np.float32)
        summed_D = config.expected_batch_size * run(rows_ND, config, 20).mean(0)
        moved = float(np.linalg.norm(summed_D - rows_ND[0]))
        if not moved < 0.02:
            return Verdict(False, f"an example with {poison} moved the sum by {moved:.3g}")
    return Verdict(True, "non-finite examples count as zero")


def batches_are_poisson(run: Run) -> Verdict:
    """Each example takes part on a coin of its own of the stated probability.

    Row n has its whole gradient in coordinate n, so that the releases show who took part. Decides
    on the number of inclusions (within 3 % of the stated probability), on the spread of the batch
    sizes, which is zero for batches of fixed size, and on correlations between examples and steps.
    """
    num_rows, num_steps, prob = 40, 1500, 0.3
    config = _config(num_examples=num_rows, expected_batch_size=12.0, noise_multiplier=0.01)
    released_SD = run(np.eye(num_rows, dtype=np.float32), config, num_steps)
    drawn_SN = (config.expected_batch_size * released_SD) > 0.5
    inclusions = int(drawn_SN.sum())
    p_value = stats.binomtest(inclusions, num_rows * num_steps, prob).pvalue
    if p_value < _ALPHA:
        rate = inclusions / num_rows / num_steps
        return Verdict(False, f"examples take part with probability {rate:.4f}, not {prob}")
    sizes_S = drawn_SN.sum(1)
    low, high = variance_interval(num_steps)
    spread = float(np.mean((sizes_S - 12.0) ** 2) / (num_rows * prob * (1 - prob)))
    if not low <= spread <= high:
        return Verdict(False, f"the batch size varies by {spread:.3f} of what coins give")
    if p_value_of_sizes(sizes_S, num_rows, prob) < _ALPHA:
        return Verdict(False, "batch sizes are not binomial")
    centred_SN = (drawn_SN - prob) / np.sqrt(prob * (1 - prob))
    for what, left, right in (
        ("neighbours", centred_SN[:, :-1], centred_SN[:, 1:]),
        ("steps", centred_SN[:-1], centred_SN[1:]),
    ):
        statistic = correlation_z(left, right)
        if not abs(statistic) < 5.5:
            return Verdict(False, f"inclusions of {what} are correlated by {statistic:.1f} sigma")
    return Verdict(True, f"{inclusions} inclusions, spread {spread:.3f}")


def divisor_is_public(run: Run) -> Verdict:
    """The sum is divided by the expected batch size, whatever the size of the batch.

    Four rows with the same gradient at the clip norm, half of them expected: what is released lies
    at 0, 1/2, 1, 3/2 and 2 times that gradient. Divided by the realised size it would lie at 1.
    """
    config = _config(num_examples=4, expected_batch_size=2.0, noise_multiplier=0.005)
    rows_ND = np.zeros((4, 2), np.float32)
    rows_ND[:, 0] = 1.0
    values_S = run(rows_ND, config, 200)[:, 0]
    counts_S = values_S * config.expected_batch_size
    levels = np.unique(np.rint(counts_S))
    distance = float(np.abs(counts_S - np.rint(counts_S)).max())
    passed = distance < 0.05 and set(levels) == {0.0, 1.0, 2.0, 3.0, 4.0}
    return Verdict(passed, f"released levels {levels}, at most {distance:.3f} off")


CHECKS: Mapping[str, Callable[[Run], Verdict]] = {
    check.__name__: check
    for check in (
        noise_scale,
        noise_is_independent,
        empty_batches_release_noise,
        one_example_is_bounded,
        each_example_is_clipped_alone,
        nonfinite_counts_as_zero,
        batches_are_poisson,
        divisor_is_public,
    )
}


def variance_interval(count: int, alpha: float = _ALPHA) -> tuple[float, float]:
    """Bounds between which the mean of `count` squared standard normals lies."""
    low, high = stats.chi2.ppf([alpha / 2, 1 - alpha / 2], count) / count
    return float(low), float(high)


def correlation_z(left: NDArray[np.float64], right: NDArray[np.float64]) -> float:
    """Correlation in standard errors; a constant input counts as fully correlated."""
    if np.ptp(left) == 0 or np.ptp(right) == 0:
        return float("inf")
    return float(np.corrcoef(left.ravel(), right.ravel())[0, 1] * np.sqrt(left.size))


def p_value_of_sizes(sizes: NDArray[np.int64], num_rows: int, prob: float) -> float:
    """Chi-squared p-value of batch sizes against Binomial(num_rows, prob).

    Bins are single sizes; both tails are merged until every bin expects 8 batches.
    """
    law = stats.binom(num_rows, prob)
    low, high = (int(law.ppf(tail)) for tail in (8 / len(sizes), 1 - 8 / len(sizes)))
    edges = np.arange(low, high)
    expected = np.diff(law.cdf(edges), prepend=0.0, append=1.0) * len(sizes)
    bins = np.searchsorted(edges, sizes)
    observed = np.bincount(bins, minlength=len(expected))
    return float(stats.chisquare(observed, expected).pvalue)


def _config(
    *,
    num_examples: int,
    expected_batch_size: float,
    noise_multiplier: float,
    clip_norm: float = 1.0,
) -> DpSgdConfig:
    return DpSgdConfig(
        num_examples=num_examples,
        expected_batch_size=expected_batch_size,
        l2_clip_norm=clip_norm,
        noise_multiplier=noise_multiplier,
    )
