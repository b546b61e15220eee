"""The installed mechanism against the strongest attacker: is epsilon what the accountant says?

Canaries are rows whose gradient, ten times the clip norm, points along a coordinate of their own,
so that no canary hides another. Each is in the data set on its own coin. The attacker sees every
release of `dp.mechanism` (real sampling, clipping, grid, noise and divisor), and scores a canary by
the likelihood ratio of its coordinate, the best score there is against a sampled Gaussian.

How many guesses to make is fixed before the run, on a simulation of an honest mechanism; the
threshold of the effective noise is the median of a tenth of the canaries, which then do not count.
Black-box checks (`dp.checks`) look at what canaries cannot see, such as noise that is
missing on empty batches.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy import stats

from fedpeft.dp import canaries, checks
from fedpeft.dp.accounting import DpSgdEvent, epsilon
from fedpeft.dp.auditing import (
    ACCUSATION,
    Coins,
    EffectiveNoise,
    Guesses,
    OneRunBound,
    Scores,
    audit_one_run,
    effective_noise,
    fair_coins,
    one_run_epsilon,
    one_run_p_value,
)
from fedpeft.dp.mechanism import DpSgdConfig
from fedpeft.dp.randomness import Keystream
from fedpeft.errors import PrivacyError

_LOUDNESS = 10.0
NUM_CANARIES = 10_000
_CANARIES_PER_RUN = 2000
_FEWEST_CANARIES = 40
_SIMULATED_NUMBERS = 40_000_000
_SHARES = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5)


class CheckResult(BaseModel):
    """One black-box check of the mechanism."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="What was checked.")
    passed: bool = Field(description="False: the mechanism is not the one that is accounted for.")
    reason: str = Field(description="The figure that decided.")


class MechanismAudit(BaseModel):
    """What the strongest attacker found out about canaries in the installed mechanism."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sampling_prob: float = Field(description="Chance of each row in each step.")
    noise_multiplier: float = Field(description="Claimed noise stddev / sensitivity.")
    num_steps: int = Field(description="Steps, each of which the attacker saw.")
    delta: float = Field(description="The delta of every epsilon here.")
    epsilon_upper: float = Field(description="The claim: what the accountant computes.")
    confidence: float = Field(description="Of the lower bounds.")
    one_run: OneRunBound = Field(description="The bound that assumes nothing but fair coins.")
    effective_noise: EffectiveNoise = Field(
        description="The nearly tight bound, for canaries that are independent trials."
    )
    checks: tuple[CheckResult, ...] = Field(description="Black-box checks.")
    false_alarm: float = Field(
        description="How likely an honest mechanism is to be accused, at most; the share of the "
        "one-run bound is estimated on a simulation of an honest mechanism."
    )
    failures: tuple[str, ...] = Field(description="Empty where nothing contradicts the claim.")
    scores: tuple[float | None, ...] = Field(
        description="Of each canary; higher means rather in; null where not finite."
    )
    included: tuple[bool, ...] = Field(description="Of each canary: whether it was in.")


def audit_mechanism(
    event: DpSgdEvent,
    *,
    delta: float,
    confidence: float = 0.95,
    num_canaries: int = NUM_CANARIES,
    keystream: Keystream | None = None,
    advanced: Callable[[int], None] = lambda num_steps: None,
) -> MechanismAudit:
    """Attacks the installed mechanism and compares what was found with the accountant.

    More canaries than fit into one run are spread over several, each with noise and coins of its
    own; together they are one run with that many canaries.

    Args:
        event: Sampling probability, noise multiplier and steps to audit.
        delta: At which epsilon is bounded.
        confidence: Of the lower bounds.
        num_canaries: Canaries, all runs together; more make the bounds tighter.
        keystream: Source of coins and noise; by default the operating system.
        advanced: Called after each step; there are `num_mechanism_steps` of them.

    Raises:
        PrivacyError: If there are too few canaries, or a number is out of range.
    """
    if num_canaries < _FEWEST_CANARIES:
        raise PrivacyError(f"an audit needs {_FEWEST_CANARIES} canaries, got {num_canaries}")
    keystream = keystream or Keystream.from_system()
    claimed = epsilon([event], delta)
    rehearsal_scores, rehearsal_included = _rehearse(event)
    guesses, accuracy = _plan_guesses(
        rehearsal_scores, rehearsal_included, num_canaries, delta, confidence
    )
    runs = [_run(event, count, keystream, advanced) for count in _canaries_by_run(num_canaries)]
    scores = np.concatenate([scores for scores, _ in runs])
    included = np.concatenate([included for _, included in runs])
    one_run = audit_one_run(scores, included, guesses=guesses, delta=delta, confidence=confidence)
    cut = num_canaries // 10
    noise = effective_noise(
        scores[cut:],
        included[cut:],
        threshold=float(np.median(scores[:cut])),
        event=event,
        delta=delta,
        confidence=confidence,
    )
    verdicts = {name: check(canaries.run_installed) for name, check in checks.CHECKS.items()}
    failures = [f"{name}: {v.reason}" for name, v in verdicts.items() if not v.passed]
    if one_run.epsilon_lower > claimed:
        failures.append(
            f"canaries in one run: epsilon is at least {one_run.epsilon_lower:.3f} with confidence "
            f"{confidence:g}, the accountant claims {claimed:.3f}"
        )
    if noise.claim_refuted:
        failures.append(
            f"effective noise: the releases hide canaries as a noise multiplier of at most "
            f"{noise.noise_multiplier_upper or math.inf:.3f} would (epsilon at least "
            f"{noise.epsilon_lower:.3f}); {event.noise_multiplier:.3f} is claimed (epsilon "
            f"{claimed:.3f})"
        )
    alarm = _one_run_alarm(num_canaries, guesses, accuracy, claimed, delta, confidence)
    return MechanismAudit(
        sampling_prob=event.sampling_prob,
        noise_multiplier=event.noise_multiplier,
        num_steps=event.num_steps,
        delta=delta,
        epsilon_upper=claimed,
        confidence=confidence,
        one_run=one_run,
        effective_noise=noise,
        checks=tuple(
            CheckResult(name=name, passed=v.passed, reason=v.reason) for name, v in verdicts.items()
        ),
        false_alarm=alarm + ACCUSATION + len(verdicts) * checks.FALSE_ALARM,
        failures=tuple(failures),
        scores=tuple(value if math.isfinite(value) else None for value in scores.tolist()),
        included=tuple(included.tolist()),
    )


def num_mechanism_steps(event: DpSgdEvent, num_canaries: int = NUM_CANARIES) -> int:
    """Returns how often `audit_mechanism` will call `advanced`."""
    return event.num_steps * len(_canaries_by_run(num_canaries))


def _canaries_by_run(num_canaries: int) -> list[int]:
    num_runs = math.ceil(num_canaries / _CANARIES_PER_RUN)
    return [len(part) for part in np.array_split(np.arange(num_canaries), num_runs)]


def _run(
    event: DpSgdEvent, num_canaries: int, keystream: Keystream, advanced: Callable[[int], None]
) -> tuple[Scores, Coins]:
    """Runs the mechanism on the canaries that are in; the others are really not there."""
    included = fair_coins(num_canaries, keystream)
    gradients_ND = _LOUDNESS * np.eye(num_canaries, dtype=np.float32)[included]
    num_rows = len(gradients_ND)
    config = DpSgdConfig(
        num_examples=num_rows,
        expected_batch_size=event.sampling_prob * num_rows,
        l2_clip_norm=1.0,
        noise_multiplier=event.noise_multiplier,
    )
    scores = np.zeros(num_canaries)
    for released_D in canaries.releases(gradients_ND, config, event.num_steps, keystream):
        scores += _log_likelihood_ratio(released_D * config.expected_batch_size, event)
        advanced(1)
    return scores, included


def _log_likelihood_ratio(sums: NDArray[np.float64], event: DpSgdEvent) -> Scores:
    """Log likelihood of a noised sum with a canary of clip norm 1 in the data, over without."""
    # A broken mechanism may release anything, NaN included; that is for the verdict to say.
    with np.errstate(all="ignore"):
        shifted = (2 * sums - 1) / (2 * event.noise_multiplier**2)
        if event.sampling_prob == 1:
            return shifted
        ratio: Scores = np.logaddexp(
            math.log1p(-event.sampling_prob), math.log(event.sampling_prob) + shifted
        )
    return ratio


def _rehearse(event: DpSgdEvent) -> tuple[Scores, Coins]:
    """Scores of canaries in an honest mechanism, simulated; always the same."""
    count = max(2000, min(20_000, _SIMULATED_NUMBERS // event.num_steps))
    rng = np.random.default_rng(0)
    included = rng.random(count) < 0.5
    scores = np.zeros(count)
    for _ in range(event.num_steps):
        drawn = included & (rng.random(count) < event.sampling_prob)
        scores += _log_likelihood_ratio(
            drawn + event.noise_multiplier * rng.standard_normal(count), event
        )
    return scores, included


def _plan_guesses(
    scores: Scores, included: Coins, num_canaries: int, delta: float, confidence: float
) -> tuple[Guesses, float]:
    """Returns the guesses that bound an honest mechanism's epsilon best, and their accuracy."""
    in_order = included[np.argsort(scores, kind="stable")]
    num_scores = len(scores)

    def accuracy(share_in: float, share_out: float) -> float:
        top = in_order[num_scores - round(share_in * num_scores) :].mean() if share_in else 0.0
        bottom = 1 - in_order[: round(share_out * num_scores)].mean() if share_out else 0.0
        return float((share_in * top + share_out * bottom) / (share_in + share_out))

    best, best_lower, best_accuracy = Guesses.quarters(num_canaries), -1.0, 0.5
    for share_in in _SHARES:
        for share_out in _SHARES:
            num_in, num_out = int(share_in * num_canaries), int(share_out * num_canaries)
            if num_in + num_out < 1:
                continue
            correct = accuracy(share_in, share_out)
            lower = one_run_epsilon(
                num_canaries=num_canaries,
                num_guesses=num_in + num_out,
                num_correct=math.floor(correct * (num_in + num_out)),
                delta=delta,
                confidence=confidence,
            )
            if lower > best_lower:
                best = Guesses(num_in=num_in, num_out=num_out)
                best_lower, best_accuracy = lower, correct
    return best, best_accuracy


def _one_run_alarm(
    num_canaries: int,
    guesses: Guesses,
    accuracy: float,
    claimed: float,
    delta: float,
    confidence: float,
) -> float:
    """Probability that an honest mechanism's one-run bound exceeds the claim."""

    def rejects(num_correct: int) -> bool:
        p_value = one_run_p_value(
            num_canaries=num_canaries,
            num_guesses=guesses.total,
            num_correct=num_correct,
            epsilon=claimed,
            delta=delta,
        )
        return p_value <= 1 - confidence

    if not rejects(guesses.total):
        return 0.0
    low, high = 0, guesses.total
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if rejects(middle) else (middle, high)
    return float(stats.binom.sf(high - 1, guesses.total, accuracy))
