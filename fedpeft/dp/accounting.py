"""Privacy events, what they add up to, and how much noise a budget needs.

An event is frozen and never changes its meaning: a spent budget is a list of events, and epsilon is
computed from them when asked. The accountant composes privacy loss distributions (PLD; Koskela et
al., 2020; Doroshenko et al., 2022, "Connect the Dots") with the `dp-accounting` library, which
rounds pessimistically: what it returns is an upper bound on the true epsilon.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from fedpeft.errors import BudgetError, PrivacyError

# Spacing of the discretised privacy loss, times the smallest noise multiplier: the loss of one
# release is about as wide as 1 / noise_multiplier, so that its table has a few ten thousand entries
# for any multiplier. It moves epsilon upwards only: by 1e-4 relative where sampling_prob is 0.03 or
# more, by 1 % where it is 0.003.
_DISCRETIZATION = 1e-3
# The multiplier is searched to this relative precision and then the safe end is taken.
_PRECISION = 1e-3
_LARGEST_MULTIPLIER = 2.0**14


@dataclass(frozen=True, kw_only=True)
class DpSgdEvent:
    """Steps of DP-SGD on one data set: Poisson sampling, then the Gaussian mechanism.

    Attributes:
        noise_multiplier: Noise stddev divided by the L2 sensitivity of the sum.
        sampling_prob: Probability that an example takes part in a step.
        num_steps: Steps, each a release of its own.
        privacy_unit: What a neighbouring data set differs in.
        neighboring_relation: How it differs.
    """

    noise_multiplier: float
    sampling_prob: float
    num_steps: int
    privacy_unit: Literal["example"] = "example"
    neighboring_relation: Literal["add_or_remove_one"] = "add_or_remove_one"

    def __post_init__(self) -> None:
        """Refuses an event whose privacy loss is not defined."""
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier > 0):
            raise PrivacyError(f"noise_multiplier must be positive, got {self.noise_multiplier}")
        if not (math.isfinite(self.sampling_prob) and 0 < self.sampling_prob <= 1):
            raise PrivacyError(f"sampling_prob must lie in (0, 1], got {self.sampling_prob}")
        if not isinstance(self.num_steps, int) or self.num_steps < 1:
            raise PrivacyError(f"num_steps must be an integer of at least 1, got {self.num_steps}")


def epsilon(events: Iterable[object], delta: float) -> float:
    """Returns an upper bound on the epsilon at `delta` of all events on one data set together.

    No event at all is epsilon 0.

    Raises:
        PrivacyError: If an event is of an unknown kind or unit, or delta does not lie in (0, 1).
    """
    _check_delta(delta)
    steps: Counter[tuple[float, float]] = Counter()
    for event in events:
        if type(event) is not DpSgdEvent:
            raise PrivacyError(f"this accountant does not know the event {event!r}")
        if (event.privacy_unit, event.neighboring_relation) != ("example", "add_or_remove_one"):
            raise PrivacyError(
                f"this accountant counts example-level, add-or-remove-one privacy; {event!r} is not"
            )
        steps[event.noise_multiplier, event.sampling_prob] += event.num_steps
    return _epsilon(tuple(sorted((*key, count) for key, count in steps.items())), delta)


def calibrate_noise_multiplier(
    *, target_epsilon: float, delta: float, sampling_prob: float, num_steps: int
) -> float:
    """Returns a noise multiplier whose `num_steps` cost at most `target_epsilon` at `delta`.

    The answer is the safe end of a bracket 0.1 % wide: its epsilon, by this module's own
    accountant, never exceeds the target.

    Raises:
        PrivacyError: If the target is not positive and finite.
        BudgetError: If no reasonable amount of noise meets the target.
    """
    if not (math.isfinite(target_epsilon) and target_epsilon > 0):
        raise PrivacyError(f"target_epsilon must be positive and finite, got {target_epsilon}")

    def fits(noise_multiplier: float) -> bool:
        event = DpSgdEvent(
            noise_multiplier=noise_multiplier, sampling_prob=sampling_prob, num_steps=num_steps
        )
        return epsilon([event], delta) <= target_epsilon

    high = 1.0
    while not fits(high):
        high *= 2
        if high > _LARGEST_MULTIPLIER:
            raise BudgetError(
                f"no noise multiplier up to {_LARGEST_MULTIPLIER:g} keeps {num_steps} steps at "
                f"sampling_prob {sampling_prob:g} within epsilon {target_epsilon:g}; plan fewer "
                "steps, smaller batches or a larger budget"
            )
    low = high / 2
    while low > 1e-2 and fits(low):
        high, low = low, low / 2
    while high / low > 1 + _PRECISION:
        middle = math.sqrt(high * low)
        high, low = (middle, low) if fits(middle) else (high, middle)
    return high


def _check_delta(delta: float) -> None:
    if not (math.isfinite(delta) and 0 < delta < 1):
        raise PrivacyError(f"delta must lie in (0, 1), got {delta}")


@lru_cache(maxsize=4096)
def _epsilon(steps: tuple[tuple[float, float, int], ...], delta: float) -> float:
    import dp_accounting
    from dp_accounting.pld import PLDAccountant

    # The event with the least noise dominates epsilon; the others may be tabulated more coarsely.
    smallest = min((noise_multiplier for noise_multiplier, _, _ in steps), default=1.0)
    accountant = PLDAccountant(
        dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE,
        value_discretization_interval=_DISCRETIZATION / smallest,
    )
    for noise_multiplier, sampling_prob, count in steps:
        release = dp_accounting.GaussianDpEvent(noise_multiplier)
        accountant.compose(dp_accounting.PoissonSampledDpEvent(sampling_prob, release), count)
    spent = float(accountant.get_epsilon(delta))
    if math.isnan(spent) or spent < 0:
        raise PrivacyError(f"the accountant returned epsilon {spent} for {steps}; refusing it")
    return spent
