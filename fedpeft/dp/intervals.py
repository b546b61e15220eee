"""Exact confidence intervals of what an attack achieved."""

from dataclasses import dataclass

from scipy import stats

from fedpeft.errors import PrivacyError


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its confidence interval."""

    value: float
    low: float
    high: float


def clopper_pearson(successes: int, trials: int, error: float) -> Interval:
    """Exact interval of a probability; each end is wrong with probability at most `error`.

    Clopper & Pearson (1934). No success gives low = 0, no failure high = 1.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise PrivacyError(f"expected successes out of trials, got {successes} of {trials}")
    low = stats.beta.ppf(error, successes, trials - successes + 1) if successes else 0.0
    high = 1.0
    if successes < trials:
        high = stats.beta.ppf(1 - error, successes + 1, trials - successes)
    return Interval(value=successes / trials, low=float(low), high=float(high))


def check_delta(delta: float) -> None:
    """Refuses a delta at which nothing can be bounded."""
    if not 0 <= delta < 1:
        raise PrivacyError(f"delta must lie in [0, 1), got {delta}")


def check_confidence(confidence: float) -> None:
    """Refuses a confidence that is none."""
    if not 0 < confidence < 1:
        raise PrivacyError(f"confidence must lie in (0, 1), got {confidence}")
