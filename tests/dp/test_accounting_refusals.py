"""What events and accountants refuse, and what they make of numbers that no run would have."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import dp_accounting
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedpeft.dp.accounting import epsilon
from fedpeft.dp.cross_checks import prv_epsilon, rdp_epsilon
from fedpeft.dp.events import ClientUpdateEvent, DpSgdEvent
from fedpeft.errors import PrivacyError

_Accountant = Callable[[Iterable[object], float], float]

_DELTA = 1e-5
_ACCOUNTANTS = [epsilon, rdp_epsilon, prv_epsilon]


def _event(prob: float, multiplier: float, steps: int) -> DpSgdEvent:
    return DpSgdEvent(noise_multiplier=multiplier, sampling_prob=prob, num_steps=steps)


def _client_event(multiplier: float, rounds: int) -> ClientUpdateEvent:
    return ClientUpdateEvent(noise_multiplier=multiplier, num_rounds=rounds)


class _Subclass(DpSgdEvent):
    """Could mean anything."""


@pytest.mark.parametrize(
    "event",
    [
        _Subclass(noise_multiplier=1.0, sampling_prob=0.1, num_steps=1),
        dp_accounting.GaussianDpEvent(1.0),
        {"noise_multiplier": 1.0, "sampling_prob": 0.1, "num_steps": 1},
        None,
    ],
)
@pytest.mark.parametrize("accountant", _ACCOUNTANTS)
def test_unknown_events_are_refused_by_name(accountant: _Accountant, event: object):
    with pytest.raises(PrivacyError, match="does not know the event"):
        accountant([_event(0.1, 1.0, 1), event], _DELTA)


@pytest.mark.parametrize(
    "changes",
    [
        {"privacy_unit": "client"},
        {"neighboring_relation": "replace_one"},
        {"sampling_scheme": "shuffle"},
    ],
)
@pytest.mark.parametrize("accountant", _ACCOUNTANTS)
def test_other_units_relations_and_schemes_are_refused(
    accountant: _Accountant, changes: dict[str, Any]
):
    event = DpSgdEvent(noise_multiplier=1.0, sampling_prob=0.1, num_steps=1, **changes)
    with pytest.raises(PrivacyError, match="example, add_or_remove_one, poisson; "):
        accountant([event], _DELTA)


@pytest.mark.parametrize(
    "changes",
    [
        {"privacy_unit": "example"},
        {"neighboring_relation": "add_or_remove_one"},
        {"sampling_scheme": "poisson"},
    ],
)
@pytest.mark.parametrize("accountant", _ACCOUNTANTS)
def test_other_client_events_are_refused(accountant: _Accountant, changes: dict[str, Any]):
    event = ClientUpdateEvent(noise_multiplier=1.0, num_rounds=1, **changes)
    with pytest.raises(PrivacyError, match="client, zero_out_one, none; "):
        accountant([event], _DELTA)


@pytest.mark.parametrize("accountant", _ACCOUNTANTS)
def test_events_of_two_units_are_not_added(accountant: _Accountant):
    with pytest.raises(PrivacyError, match="no common epsilon"):
        accountant([_event(0.1, 1.0, 1), _client_event(1.0, 1)], _DELTA)


@pytest.mark.parametrize(
    "changes",
    [
        {"noise_multiplier": 0.0},
        {"noise_multiplier": -1.0},
        {"noise_multiplier": math.nan},
        {"noise_multiplier": math.inf},
        {"sampling_prob": 0.0},
        {"sampling_prob": 1.0 + 1e-12},
        {"sampling_prob": math.nan},
        {"num_steps": 0},
        {"num_steps": -3},
        {"num_steps": 1.5},
        {"num_steps": math.nan},
        {"num_steps": True},
        {"noise_multiplier": "1.0"},
        {"noise_multiplier": 10**400},
        {"noise_multiplier": None},
        {"sampling_prob": "0.1"},
        {"sampling_prob": None},
    ],
)
def test_events_without_a_privacy_loss_are_refused(changes: dict[str, Any]):
    values = {"noise_multiplier": 1.0, "sampling_prob": 0.1, "num_steps": 1, **changes}
    with pytest.raises(PrivacyError, match=next(iter(changes))):
        DpSgdEvent(**values)


@pytest.mark.parametrize(
    "changes",
    [{"noise_multiplier": 0.0}, {"noise_multiplier": math.nan}, {"num_rounds": 0}],
)
def test_client_events_without_a_privacy_loss_are_refused(changes: dict[str, Any]):
    with pytest.raises(PrivacyError, match=next(iter(changes))):
        ClientUpdateEvent(**{"noise_multiplier": 1.0, "num_rounds": 1, **changes})


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan, math.inf])
@pytest.mark.parametrize("accountant", _ACCOUNTANTS)
def test_bad_delta_is_refused(accountant: _Accountant, delta: float):
    with pytest.raises(PrivacyError, match="delta"):
        accountant([], delta)


@pytest.mark.parametrize("accountant", _ACCOUNTANTS)
def test_nothing_released_costs_nothing(accountant: _Accountant):
    assert accountant([], _DELTA) == 0


def test_event_cannot_be_changed():
    with pytest.raises(AttributeError):
        _event(0.1, 1.0, 1).num_steps = 5  # type: ignore[misc]


def test_repeated_and_single():
    event, client_event = _event(0.1, 2.0, 5), _client_event(2.0, 5)
    assert (event.repeated(3), event.single()) == (_event(0.1, 2.0, 15), _event(0.1, 2.0, 1))
    assert client_event.repeated(3) == _client_event(2.0, 15)
    assert client_event.single() == _client_event(2.0, 1)
    assert event.num_releases == client_event.num_releases == 5


_ODD = [math.nan, math.inf, -math.inf, -1.0, 0.0, 5e-324, 1e-300, 1e-30, 1e-5, 1e-3, 0.03, 0.5]
_FLOATS = st.sampled_from([*_ODD, 1 - 2**-53, 1.0, 20.0, 1e6, 1e30, 1.7e308]) | st.floats()
_COUNTS = st.sampled_from([0, 1, 1000, 10**6, 10**6 + 1, 2**70]) | st.integers(1, 10**4)


def _priced(accountant: _Accountant, make: Callable[[], object], delta: float) -> None:
    """Either refuses or gives an epsilon; NaN, a negative one or another exception is a bug."""
    try:
        spent = accountant([make()], delta)
    except PrivacyError:
        return
    assert spent >= 0


@settings(max_examples=30, deadline=None)
@given(noise=_FLOATS, prob=_FLOATS, steps=_COUNTS, delta=_FLOATS)
# The slowest that the limits let through, and what once overflowed or divided by zero.
@example(noise=1.0, prob=0.5, steps=10**6, delta=1e-5)
@example(noise=1e-3, prob=0.5, steps=10**5, delta=1e-5)
@example(noise=1e30, prob=5e-324, steps=10**6, delta=1e-5)
@example(noise=1e-3, prob=1.0, steps=1, delta=1 - 2**-53)
@example(noise=1.0, prob=1 - 2**-53, steps=1000, delta=5e-324)
def test_any_number_is_priced_or_refused(noise: float, prob: float, steps: int, delta: float):
    for accountant in _ACCOUNTANTS:
        _priced(
            accountant,
            lambda: DpSgdEvent(noise_multiplier=noise, sampling_prob=prob, num_steps=steps),
            delta,
        )


@settings(max_examples=30, deadline=None)
@given(noise=_FLOATS, rounds=_COUNTS, delta=_FLOATS)
def test_any_client_number_is_priced_or_refused(noise: float, rounds: int, delta: float):
    for accountant in _ACCOUNTANTS:
        _priced(
            accountant,
            lambda: ClientUpdateEvent(noise_multiplier=noise, num_rounds=rounds),
            delta,
        )


@pytest.mark.parametrize(
    "event", [_event(0.1, 9e-4, 1), _event(0.1, 10.0, 10**6 + 1), _client_event(1.0, 2**70)]
)
def test_what_the_numerics_cannot_hold_is_unbounded(event: object):
    assert epsilon([event], _DELTA) == rdp_epsilon([event], _DELTA) == math.inf
    with pytest.raises(PrivacyError, match="epsilon is infinite"):
        prv_epsilon([event], _DELTA)


def test_numbers_beyond_the_tables_are_rounded_toward_privacy():
    assert epsilon([_event(0.5, 1e300, 100)], 1e-9) == epsilon([_event(0.5, 1e6, 100)], 1e-9) > 0
    assert epsilon([_event(1e-300, 1.0, 9)], _DELTA) == epsilon([_event(1e-9, 1.0, 9)], _DELTA)
