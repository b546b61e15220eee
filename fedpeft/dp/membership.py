"""How well a score tells rows that were trained on from rows that were not.

Members and non-members are taken as independent draws from one distribution. The thresholds and
error rates are fixed before the scores are seen, or paid for by dividing the error probability by
the number of tries.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from fedpeft.dp.intervals import Interval, check_confidence, check_delta, clopper_pearson
from fedpeft.errors import PrivacyError

Scores = NDArray[np.float64]

_FPR_TARGETS = (0.001, 0.01, 0.1)


@dataclass(frozen=True, kw_only=True)
class Rate:
    """True-positive rate at one false-positive rate.

    Attributes:
        false_positive_target: Share of non-members that the threshold may let pass.
        threshold: Scores above it are guessed to be members.
        false_positive: With a Clopper-Pearson interval that allows for the choice of threshold.
        true_positive: With a Clopper-Pearson interval.
    """

    false_positive_target: float
    threshold: float
    false_positive: Interval
    true_positive: Interval


@dataclass(frozen=True, kw_only=True)
class MembershipAttack:
    """How well a score tells members from non-members.

    Attributes:
        num_members: Rows that were trained on.
        num_non_members: Rows that were not.
        auc: Probability that a member scores above a non-member, ties counted half (DeLong).
        rates: At the false-positive rates that there are enough non-members for.
        epsilon_lower: Implied by the rates, all of them allowed for.
    """

    num_members: int
    num_non_members: int
    auc: Interval
    rates: tuple[Rate, ...]
    epsilon_lower: float


def auc(members: Scores, non_members: Scores, confidence: float) -> Interval:
    """Area under the ROC curve, with DeLong's interval on the logit scale.

    DeLong, DeLong & Clarke-Pearson (1988). Where the samples do not overlap, that variance is
    zero; the interval is then Clopper and Pearson's for disjoint pairs of a member and a
    non-member, all ordered alike.

    Raises:
        PrivacyError: If a sample has fewer than 2 scores or holds NaN.
    """
    check_confidence(confidence)
    num_in, num_out = len(members), len(non_members)
    if min(num_in, num_out) < 2:
        raise PrivacyError(f"an AUC needs 2 scores on each side, got {num_in} and {num_out}")
    if np.isnan(members).any() or np.isnan(non_members).any():
        raise PrivacyError("a score is NaN; the losses of a diverged adapter tell nothing")
    joint = stats.rankdata(np.concatenate([members, non_members]))
    below_member = (joint[:num_in] - stats.rankdata(members)) / num_out
    above_non_member = 1 - (joint[num_in:] - stats.rankdata(non_members)) / num_in
    value = float(below_member.mean())
    variance = below_member.var(ddof=1) / num_in + above_non_member.var(ddof=1) / num_out
    error = (1 - confidence) / 2
    if variance == 0 or not 0 < value < 1:
        pairs = min(num_in, num_out)
        exact = clopper_pearson(round(value * pairs), pairs, error)
        return Interval(value=value, low=exact.low, high=exact.high)
    half = stats.norm.ppf(1 - error) * math.sqrt(variance) / (value * (1 - value))
    logit = math.log(value / (1 - value))
    low, high = (1 / (1 + math.exp(-(logit + sign * half))) for sign in (-1, 1))
    return Interval(value=value, low=low, high=high)


def membership_attack(
    members: Scores, non_members: Scores, *, delta: float, confidence: float
) -> MembershipAttack:
    """Measures how well scores tell members from non-members.

    The threshold for a false-positive target is an order statistic of the non-members, chosen in
    advance by its rank k: with the (k+1)-th highest non-member as threshold, the true
    false-positive rate has the Beta(k + 1, n - k) distribution whose quantile is the upper end of
    Clopper and Pearson's interval, so that the interval holds although the data chose the
    threshold. Epsilon is the largest of ln((TPR - delta) / FPR) and, from the other end,
    ln((TNR - delta) / FNR) over all targets, with the error probability divided by the number of
    rates that enter.

    Args:
        members: Scores of rows that were trained on; higher means rather a member.
        non_members: Scores of rows that were not.
        delta: At which epsilon is bounded.
        confidence: Of each interval, and of the bound on epsilon.

    Raises:
        PrivacyError: If a side has fewer than 2 scores or holds NaN.
    """
    check_delta(delta)
    area = auc(members, non_members, confidence)
    targets = [t for t in _FPR_TARGETS if t * len(non_members) >= 1]
    rates = tuple(_rate(members, non_members, target, (1 - confidence) / 2) for target in targets)
    mirrored = [t for t in _FPR_TARGETS if t * len(members) >= 1]
    num_ends = 2 * (len(targets) + len(mirrored))
    lower = 0.0
    if num_ends:
        error = (1 - confidence) / num_ends
        ends = [_rate(members, non_members, target, error) for target in targets]
        ends += [_rate(-non_members, -members, target, error) for target in mirrored]
        lower = max(
            _epsilon_of_rates(end.true_positive.low, end.false_positive.high, delta) for end in ends
        )
    return MembershipAttack(
        num_members=len(members),
        num_non_members=len(non_members),
        auc=area,
        rates=rates,
        epsilon_lower=lower,
    )


def roc_curve(members: Scores, non_members: Scores) -> tuple[Scores, Scores]:
    """Returns false- and true-positive rates at every threshold, from (0, 0) to (1, 1)."""
    thresholds = np.unique(np.concatenate([members, non_members]))[::-1]
    return tuple(  # type: ignore[return-value]
        np.concatenate(
            [[0.0], 1 - np.searchsorted(np.sort(side), thresholds, side="left") / len(side)]
        )
        for side in (non_members, members)
    )


def _rate(members: Scores, non_members: Scores, target: float, error: float) -> Rate:
    allowed = math.floor(target * len(non_members) + 1e-9)
    threshold = float(np.sort(non_members)[::-1][allowed])
    passed = int((non_members > threshold).sum())  # fewer than allowed where scores are equal
    false_positive = clopper_pearson(passed, len(non_members), error)
    return Rate(
        false_positive_target=target,
        threshold=threshold,
        false_positive=replace(
            false_positive, high=clopper_pearson(allowed, len(non_members), error).high
        ),
        true_positive=clopper_pearson(int((members > threshold).sum()), len(members), error),
    )


def _epsilon_of_rates(true_positive: float, false_positive: float, delta: float) -> float:
    if true_positive <= delta:
        return 0.0
    return max(0.0, math.log((true_positive - delta) / false_positive))
