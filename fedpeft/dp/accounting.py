"""What events add up to, and how much noise a budget needs.

The accountant composes privacy loss distributions (PLD; Koskela et al., 2020; Doroshenko et al.,
2022, "Connect the Dots") with the `dp-accounting` library, which rounds pessimistically; the
rounding of its float64 arithmetic, for which it does not allow, is allowed for here. What comes out
is an upper bound on the true epsilon. `cross_checks` has two other accountants.
"""

import math
from collections.abc import Callable, Iterable
from functools import lru_cache

from fedpeft.dp.composition import (
    Releases,
    check_delta,
    checked_epsilon,
    composition,
    countable,
    rounding,
)
from fedpeft.dp.events import ClientUpdateEvent, DpSgdEvent, PrivacyEvent
from fedpeft.errors import BudgetError, PrivacyError

__all__ = [
    "DpSgdEvent",
    "calibrate_client_noise_multiplier",
    "calibrate_noise_multiplier",
    "epsilon",
]

# Spacing of the discretised privacy loss, times the noise multiplier: the loss of one release is
# about as wide as 1 / noise_multiplier, so that its table has a few ten thousand entries for any
# multiplier. Where few examples are sampled most of the loss is narrower still, and the table gets
# up to ten times finer. The spacing moves epsilon upwards only: by 1e-4 relative where
# sampling_prob is 0.03 or more, by 1e-3 where it is 0.001 or more, by 12 % where it is 1e-4.
_DISCRETIZATION = 1e-3
_COARSEST_PROB, _FINEST = 0.01, 0.1
# A composed table of this many entries takes about a second; where the spacing would make it
# longer, the spacing grows, which only moves epsilon upwards.
_MOST_ENTRIES = 2**22
_COARSEST = 100.0  # beyond it the answer would say nothing, and far beyond the library overflows
# The multiplier is searched to this relative precision and then the safe end is taken.
_PRECISION = 1e-3
_LARGEST_MULTIPLIER = 2.0**14


def epsilon(events: Iterable[object], delta: float) -> float:
    """Returns an upper bound on the epsilon at `delta` of all events on one data set together.

    No event at all is epsilon 0. Infinity means that no bound can be computed: delta is below what
    the tables resolve (1e-15 a step), the noise is below 1e-3 of the sensitivity, there are more
    than a million sampled steps, or epsilon is in the thousands and a table would be too long.

    Raises:
        PrivacyError: If an event is of an unknown kind, unit, relation or sampling scheme, the
            events are not all of one unit, or delta does not lie in (0, 1).
    """
    check_delta(delta)
    releases = composition(events)
    return _epsilon(releases, delta) if countable(releases) else math.inf


def calibrate_noise_multiplier(
    *, target_epsilon: float, delta: float, sampling_prob: float, num_steps: int
) -> float:
    """Returns a noise multiplier whose `num_steps` of DP-SGD cost at most `target_epsilon`.

    The answer is at most 0.2 % above the smallest that does, on the safe side: its epsilon at
    `delta`, by this module's own accountant, never exceeds the target.

    Raises:
        PrivacyError: If the target is not positive and finite.
        BudgetError: If no reasonable amount of noise meets the target.
    """

    def event(noise_multiplier: float) -> DpSgdEvent:
        return DpSgdEvent(
            noise_multiplier=noise_multiplier, sampling_prob=sampling_prob, num_steps=num_steps
        )

    return _calibrate(event, target_epsilon, delta)


def calibrate_client_noise_multiplier(
    *, target_epsilon: float, delta: float, num_rounds: int
) -> float:
    """Returns a noise multiplier whose `num_rounds` cost a client at most `target_epsilon`.

    Rounds as `calibrate_noise_multiplier` does.

    Raises:
        PrivacyError: If the target is not positive and finite.
        BudgetError: If no reasonable amount of noise meets the target.
    """

    def event(noise_multiplier: float) -> ClientUpdateEvent:
        return ClientUpdateEvent(noise_multiplier=noise_multiplier, num_rounds=num_rounds)

    return _calibrate(event, target_epsilon, delta)


def _calibrate(
    event: Callable[[float], PrivacyEvent], target_epsilon: float, delta: float
) -> float:
    if not (math.isfinite(target_epsilon) and target_epsilon > 0):
        raise PrivacyError(f"target_epsilon must be positive and finite, got {target_epsilon}")

    def fits(noise_multiplier: float) -> bool:
        return epsilon([event(noise_multiplier)], delta) <= target_epsilon

    def excess(noise_multiplier: float) -> float:
        over = epsilon([event(noise_multiplier)], delta) / target_epsilon
        return math.log(min(max(over, 1e-9), 1e9))

    high = 1.0
    while not fits(high):
        high *= 2
        if high > _LARGEST_MULTIPLIER:
            raise BudgetError(
                f"no noise multiplier up to {_LARGEST_MULTIPLIER:g} keeps {event(high)} within "
                f"epsilon {target_epsilon:g}; plan fewer steps or rounds, smaller batches or a "
                "larger budget"
            )
    low = high / 2
    while low > 1e-2 and fits(low):
        high, low = low, low / 2
    return low if fits(low) else _safe_end(excess, low, high)


def _safe_end(excess: Callable[[float], float], low: float, high: float) -> float:
    """Returns a multiplier just above the one where `excess` crosses zero, on the safe side."""
    from scipy.optimize import brentq

    crossing = brentq(lambda x: excess(math.exp(x)), math.log(low), math.log(high), xtol=_PRECISION)
    safe = math.exp(crossing)
    # Within the tolerance of the search; the last bits of epsilon are not monotone.
    while safe < high and excess(safe) > 0:
        safe *= 1 + _PRECISION / 2
    return min(safe, high)


@lru_cache(maxsize=4096)
def _epsilon(releases: tuple[Releases, ...], delta: float) -> float:
    import dp_accounting
    from dp_accounting.pld import PLDAccountant

    spacing, covered = _spacing(releases), delta - rounding(releases)
    if spacing > _COARSEST or covered <= 0:
        return math.inf
    # Without sampling, zeroing out costs what adding or removing does: both move the sum by at most
    # its sensitivity.
    accountant = PLDAccountant(
        dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE,
        value_discretization_interval=spacing,
    )
    for some in releases:
        release = dp_accounting.GaussianDpEvent(some.noise_multiplier)
        accountant.compose(
            dp_accounting.PoissonSampledDpEvent(some.sampling_prob, release), some.count
        )
    return checked_epsilon(accountant.get_epsilon(covered), "PLD", releases)


def _spacing(releases: tuple[Releases, ...]) -> float:
    # The releases with the least noise and of most examples dominate epsilon; others may be
    # tabulated more coarsely. So one more event never makes the spacing finer, and epsilon less.
    smallest = min((some.noise_multiplier for some in releases), default=1.0)
    likely = max((some.sampling_prob for some in releases), default=1.0)
    finer = min(1.0, max(_FINEST, likely / _COARSEST_PROB))
    width = sum(_width(some) for some in releases)
    return max(finer * _DISCRETIZATION / smallest, width / _MOST_ENTRIES)


def _width(some: Releases) -> float:
    """Bounds how wide a table of the composed loss the library keeps."""
    mu, prob = 1 / some.noise_multiplier, some.sampling_prob
    one = mu**2 / 2 + 10 * mu  # the library leaves out e^-50, which is at 10 deviations
    if prob == 1:
        return 2 * one
    # Of one loss: as if unsampled, or from log(r)^2 <= (r - 1)^2 / r for r the ratio of densities.
    variance = min(mu**2 + mu**4 / 4, prob**2 * math.expm1(min(mu**2, 700)) / (1 - prob))
    # The library cuts tails of 1e-15 off with Chernoff bounds of orders 1 to 20 over the width.
    spread = some.count * variance
    return 7 * one + 17 * math.sqrt(spread) + 2 * spread / one
