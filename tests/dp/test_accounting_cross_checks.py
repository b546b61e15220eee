"""Three accountants on one grid: the bounds that `cross_checks` states.

PLD and PRV share no code; PLD and RDP share a library but no method.
"""

import itertools

import pytest

from fedpeft.dp.accounting import epsilon
from fedpeft.dp.cross_checks import prv_epsilon, prv_interval, rdp_epsilon
from fedpeft.dp.events import ClientUpdateEvent, DpSgdEvent, PrivacyEvent
from fedpeft.errors import PrivacyError

_DELTA = 1e-5
_GRID = list(itertools.product((0.001, 0.01, 0.05, 0.2), (0.7, 1.0, 2.0, 5.0), (1, 100, 1000)))


def _event(prob: float, multiplier: float, steps: int) -> DpSgdEvent:
    return DpSgdEvent(noise_multiplier=multiplier, sampling_prob=prob, num_steps=steps)


def _agree(events: list[PrivacyEvent], delta: float) -> None:
    pld, rdp = epsilon(events, delta), rdp_epsilon(events, delta)
    low, high = prv_interval(events, delta)
    assert pld <= rdp * (1 + 1e-9)
    assert low <= pld <= high
    assert high - low <= 2.3e-3 * max(1.0, rdp)
    if pld >= 1:
        assert rdp <= 1.7 * pld
    assert prv_epsilon(events, delta) == high


@pytest.mark.parametrize(
    ("prob", "multiplier", "steps"),
    [pytest.param(*point, marks=[pytest.mark.slow] if point[2] == 100 else []) for point in _GRID],
)
def test_accountants_agree_on_the_grid(prob: float, multiplier: float, steps: int):
    _agree([_event(prob, multiplier, steps)], _DELTA)


@pytest.mark.parametrize("delta", [1e-3, 1e-7, 1e-9])
def test_accountants_agree_at_other_deltas(delta: float):
    _agree([_event(0.05, 1.0, 1000)], delta)


@pytest.mark.parametrize(
    "events",
    [
        [_event(0.05, 1.0, 100), _event(0.01, 0.8, 300), _event(0.2, 5.0, 10)],
        [_event(1.0, 5.0, 10), _event(0.05, 1.0, 100)],
        [_event(1.0, 3.0, 20)],
        [ClientUpdateEvent(noise_multiplier=3.0, num_rounds=20)],
    ],
)
def test_accountants_agree_on_mixed_and_unsampled_releases(events: list[PrivacyEvent]):
    _agree(events, _DELTA)


def test_a_wrong_noise_multiplier_would_not_agree():
    """The interval is narrow enough to tell 1 % of noise apart."""
    low, high = prv_interval([_event(0.05, 1.0, 1000)], _DELTA)
    assert epsilon([_event(0.05, 1.01, 1000)], _DELTA) < low
    assert epsilon([_event(0.05, 0.99, 1000)], _DELTA) > high


@pytest.mark.parametrize(
    ("event", "delta", "reason"),
    [
        (_event(0.01, 1.0, 1000), 1e-12, "rounding errors would dominate"),
        (_event(0.01, 1e6, 1_000_000), 1e-5, "its table would have"),
        (_event(1.0, 0.028, 1), 1e-5, "its exponentials overflow"),
        (_event(0.01, 0.025, 1), 1e-5, "its exponentials overflow"),
    ],
)
def test_where_prv_fails_it_says_so(event: DpSgdEvent, delta: float, reason: str):
    """Opacus alone gives a number at the first and the last two: wrong, infinite, and too low."""
    assert epsilon([event], delta) >= 0
    with pytest.raises(PrivacyError, match=reason):
        prv_interval([event], delta)
