"""Lower bounds on epsilon from the success of an attack: what a privacy claim is tested against.

An accountant gives an upper bound on epsilon from what the code is meant to do. These bounds go the
other way: from what an attacker achieved against what the code did. Where the lower bound exceeds
the claim, the claim is false, with the stated confidence. Where it does not, nothing is proved:
this attack did not find more.

Two kinds of bound, by what they assume:

- `audit_one_run`: nothing but that each canary was in or out on a fair coin of its own. Any
  dependence between canaries is allowed (Steinke, Nasr & Jagielski, 2023, "Privacy Auditing with
  One (1) Training Run", theorem 5.2).
- `effective_noise`: that canaries behave as independent trials, and that the mechanism is some
  Poisson-sampled Gaussian. In return it is nearly tight (after Nasr et al., 2023, "Tight Auditing
  of Differentially Private Machine Learning").

A third, from members and non-members that are independent draws, is in `membership`.

No rule here looks at the coins before it decides how many guesses to make: the number of guesses,
the thresholds and the error rates are fixed before the scores are seen, or paid for by dividing the
error probability by the number of tries.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from fedpeft.dp.accounting import DpSgdEvent, epsilon
from fedpeft.dp.intervals import Interval, check_confidence, check_delta, clopper_pearson
from fedpeft.dp.randomness import Keystream
from fedpeft.errors import PrivacyError

Scores = NDArray[np.float64]
Coins = NDArray[np.bool_]

ACCUSATION = 1e-6
"""Error probability at which `effective_noise` calls a claim refuted."""

_PRECISION = 1e-6
_NOISE_PRECISION = 1.005
_WIDEST = 64
_HUGE = 1e300
# How coarsely privacy losses are tabulated, relative to 1/noise. Coarser is more cautious.
_DISCRETIZATION = 4e-3
_LOSSES = np.linspace(0, 12, 241)


@dataclass(frozen=True, kw_only=True)
class Guesses:
    """How many canaries the attacker guesses on; it abstains on all others.

    Attributes:
        num_in: Guessed to have taken part: those with the highest scores.
        num_out: Guessed not to have: those with the lowest.
    """

    num_in: int
    num_out: int

    def __post_init__(self) -> None:
        """Refuses an attacker who never guesses."""
        if min(self.num_in, self.num_out) < 0 or self.num_in + self.num_out < 1:
            raise PrivacyError("an attack needs at least one guess")

    @classmethod
    def quarters(cls, num_canaries: int) -> "Guesses":
        """The top and the bottom quarter: near the best choice for a weak attack on Gaussian noise.

        There the evidence of the guesses grows with their accuracy above 1/2 times the root of
        their number, which a normal score maximises at 27 % on each side.
        """
        quarter = max(1, num_canaries // 4)
        return cls(num_in=quarter, num_out=quarter)

    @property
    def total(self) -> int:
        """Guesses on both sides."""
        return self.num_in + self.num_out


@dataclass(frozen=True, kw_only=True)
class OneRunBound:
    """What one run with canaries shows.

    Attributes:
        num_canaries: Canaries, in or out.
        num_guesses: Guesses made, a number fixed before the scores were seen.
        num_correct: Correct ones.
        epsilon_lower: The mechanism is not (epsilon, delta)-DP for any smaller epsilon.
        confidence: Probability at least of that, over coins and noise.
    """

    num_canaries: int
    num_guesses: int
    num_correct: int
    epsilon_lower: float
    confidence: float


@dataclass(frozen=True, kw_only=True)
class EffectiveNoise:
    """The Poisson-sampled Gaussian that the releases look like.

    Attributes:
        noise_multiplier_upper: Any larger multiplier would hide the canaries better than they were;
            None where nothing can be said.
        epsilon_lower: Epsilon of that multiplier.
        true_positive: Canaries that were in and scored above the threshold.
        false_positive: Canaries that were out and scored above the threshold.
        claim_refuted: Whether the claimed multiplier is ruled out even with error probability 1e-6.
            The bound is nearly tight, so at an ordinary confidence it would accuse honest
            mechanisms every now and then.
    """

    noise_multiplier_upper: float | None
    epsilon_lower: float
    true_positive: Interval
    false_positive: Interval
    claim_refuted: bool


# --- One run.


def fair_coins(count: int, keystream: Keystream) -> Coins:
    """Flips `count` fair coins, shape (count,)."""
    return (keystream.words(count) >> np.uint64(63)).astype(np.bool_)


def one_run_p_value(
    *, num_canaries: int, num_guesses: int, num_correct: int, epsilon: float, delta: float
) -> float:
    """Bounds how likely so many correct guesses are against any (epsilon, delta)-DP mechanism.

    Theorem 5.2 of Steinke, Nasr & Jagielski (2023). With W binomial over the guesses and success
    probability e^eps / (1 + e^eps), the bound is P[W >= v] plus 2 m delta times the largest over i
    of P[v > W >= v - i] / i, at most 1.

    Args:
        num_canaries: m, each in or out on a fair coin.
        num_guesses: Guesses made, fixed before.
        num_correct: v, how many were correct.
        epsilon: Of the hypothesis.
        delta: Of the hypothesis.

    Raises:
        PrivacyError: If the counts contradict each other, or epsilon or delta is out of range.
    """
    check_delta(delta)
    if not 0 <= num_correct <= num_guesses <= num_canaries or num_guesses < 1:
        raise PrivacyError(
            f"expected 0 <= correct <= guesses <= canaries and a guess, got {num_correct}, "
            f"{num_guesses} and {num_canaries}"
        )
    if not epsilon >= 0:
        raise PrivacyError(f"epsilon must be at least 0, got {epsilon}")
    if num_correct == 0:
        return 1.0
    law = stats.binom(num_guesses, 1 / (1 + math.exp(-epsilon)))
    at_least = float(law.sf(num_correct - 1))
    if delta == 0:
        return min(1.0, at_least)
    below = np.cumsum(law.pmf(np.arange(num_correct - 1, -1, -1)))
    steepest = float((below / np.arange(1, num_correct + 1)).max())
    return min(1.0, at_least + 2 * num_canaries * delta * steepest)


def one_run_epsilon(
    *, num_canaries: int, num_guesses: int, num_correct: int, delta: float, confidence: float
) -> float:
    """Returns a lower bound on epsilon at `delta`, 0 where nothing can be said.

    It exceeds the true epsilon with probability at most 1 - confidence: every smaller epsilon is
    rejected by `one_run_p_value` at that level, since (eps, delta)-DP implies (eps', delta)-DP for
    every larger eps'.
    """
    check_confidence(confidence)

    def rejected(eps: float) -> bool:
        p_value = one_run_p_value(
            num_canaries=num_canaries,
            num_guesses=num_guesses,
            num_correct=num_correct,
            epsilon=eps,
            delta=delta,
        )
        return p_value <= 1 - confidence

    return _largest(rejected, 0.0, 1.0) if rejected(0.0) else 0.0


def count_correct(scores: Scores, included: Coins, guesses: Guesses) -> int:
    """Counts correct guesses: the highest scores are guessed in, the lowest out.

    Equal scores are ordered by index, which no coin had a part in. NaN is no evidence: it ranks in
    the middle. Infinite scores are ranked as they are.

    Raises:
        PrivacyError: If there are more guesses than canaries, or not one coin a score.
    """
    if scores.shape != included.shape or scores.ndim != 1:
        raise PrivacyError(f"expected one coin a score, got {included.shape} and {scores.shape}")
    if guesses.total > len(scores):
        raise PrivacyError(f"{guesses.total} guesses are too many for {len(scores)} canaries")
    known = scores[~np.isnan(scores)]
    middle = float(np.median(np.clip(known, -_HUGE, _HUGE))) if len(known) else 0.0
    order = np.argsort(np.where(np.isnan(scores), middle, scores), kind="stable")
    guessed_in = order[len(scores) - guesses.num_in :]
    guessed_out = order[: guesses.num_out]
    return int(included[guessed_in].sum() + (~included[guessed_out]).sum())


def audit_one_run(
    scores: Scores, included: Coins, *, guesses: Guesses, delta: float, confidence: float
) -> OneRunBound:
    """Bounds epsilon from below by the canaries of one run.

    Args:
        scores: Of each canary, shape (m,); higher means rather in. Computed without the coins.
        included: Its coin, shape (m,): fair and independent of everything else.
        guesses: How many to make; fixed before the scores were seen.
        delta: At which epsilon is bounded.
        confidence: The bound exceeds the true epsilon with probability at most 1 - confidence.

    Raises:
        PrivacyError: If the shapes or numbers do not fit together.
    """
    correct = count_correct(scores, included, guesses)
    lower = one_run_epsilon(
        num_canaries=len(scores),
        num_guesses=guesses.total,
        num_correct=correct,
        delta=delta,
        confidence=confidence,
    )
    return OneRunBound(
        num_canaries=len(scores),
        num_guesses=guesses.total,
        num_correct=correct,
        epsilon_lower=lower,
        confidence=confidence,
    )


# --- Poisson-sampled Gaussians.


def effective_noise(
    scores: Scores,
    included: Coins,
    *,
    threshold: float,
    event: DpSgdEvent,
    delta: float,
    confidence: float,
) -> EffectiveNoise:
    """Finds the most noise that a sampled Gaussian can have had, given how canaries scored.

    The canaries' true- and false-positive rates, each at its end of a Clopper-Pearson interval of
    half the error probability, must lie within the privacy region of the mechanism. The region of
    `event` with another noise multiplier is computed from its privacy loss distribution.

    Args:
        scores: Of each canary, shape (m,).
        included: Its coin, shape (m,).
        threshold: Scores above it are guessed in; fixed before the scores were seen.
        event: The claim; its sampling probability and number of steps are taken as they are.
        delta: At which epsilon is bounded.
        confidence: Holds for canaries that are independent trials.

    Raises:
        PrivacyError: If all coins fell on one side, or delta or confidence is out of range.
    """
    check_delta(delta)
    check_confidence(confidence)
    num_in, num_out = int(included.sum()), int((~included).sum())
    if not num_in or not num_out:
        raise PrivacyError("the coins of all canaries fell on one side; use more canaries")
    above = scores > threshold

    def rates(error: float) -> tuple[Interval, Interval]:
        return (
            clopper_pearson(int(above[included].sum()), num_in, error / 2),
            clopper_pearson(int(above[~included].sum()), num_out, error / 2),
        )

    true_positive, false_positive = rates(1 - confidence)

    def excluded(noise_multiplier: float) -> bool:
        other = replace(event, noise_multiplier=noise_multiplier)
        return _outside_region(true_positive.low, false_positive.high, other)

    upper = _smallest_excluded(excluded, event.noise_multiplier)
    lower = 0.0
    if upper is not None:
        lower = epsilon([replace(event, noise_multiplier=upper)], delta)
    sure_true, sure_false = rates(ACCUSATION)
    return EffectiveNoise(
        noise_multiplier_upper=upper,
        epsilon_lower=lower,
        true_positive=true_positive,
        false_positive=false_positive,
        claim_refuted=_outside_region(sure_true.low, sure_false.high, event),
    )


def _outside_region(true_positive: float, false_positive: float, event: DpSgdEvent) -> bool:
    """Whether no attack on the mechanism can have these rates."""
    by_in = true_positive - np.exp(_LOSSES) * false_positive
    by_out = (1 - false_positive) - np.exp(_LOSSES) * (1 - true_positive)
    return bool((np.maximum(by_in, by_out) > _deltas(event)).any())


@lru_cache(maxsize=256)
def _deltas(event: DpSgdEvent) -> NDArray[np.float64]:
    """Returns the delta of the mechanism at every epsilon of `_LOSSES`, rounded up."""
    from dp_accounting.pld import privacy_loss_distribution

    one_step = privacy_loss_distribution.from_gaussian_mechanism(
        event.noise_multiplier,
        value_discretization_interval=_DISCRETIZATION / event.noise_multiplier,
        sampling_prob=event.sampling_prob,
    )
    composed = one_step.self_compose(event.num_steps)
    return np.asarray(composed.get_delta_for_epsilon(_LOSSES))


def _smallest_excluded(excluded: Callable[[float], bool], start: float) -> float | None:
    """Searches on a logarithmic scale; answers with an excluded value, or None beyond 64 times."""
    low = high = start
    if excluded(start):
        while excluded(low):
            high, low = low, low / 2
            if low < start / _WIDEST:
                return high
    else:
        while not excluded(high):
            low, high = high, high * 2
            if high > start * _WIDEST:
                return None
    while high / low > _NOISE_PRECISION:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if excluded(middle) else (middle, high)
    return high


def _largest(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Bisects for the largest number that `holds`, given that `low` does; answers with one."""
    while holds(high):
        low, high = high, 2 * high
    while high - low > _PRECISION:
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
