"""An event is written exactly, and read only if every part of it is known."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.canonical import read_float, write_float
from fedpeft.dp.events import ClientUpdateEvent, DpSgdEvent, PrivacyEvent
from fedpeft.errors import PrivacyError
from fedpeft.ledger.events import decode, encode
from tests.ledger.samples import EVENT

CLIENT_EVENT = ClientUpdateEvent(noise_multiplier=4.0, num_rounds=5)


@given(
    noise=st.floats(min_value=5e-324, max_value=1.7e308),
    prob=st.floats(min_value=5e-324, max_value=1.0),
    steps=st.integers(min_value=1, max_value=2**70),
)
def test_what_is_written_is_what_was_meant(noise: float, prob: float, steps: int) -> None:
    event = DpSgdEvent(noise_multiplier=noise, sampling_prob=prob, num_steps=steps)
    assert decode(encode(event)) == event
    client_event = ClientUpdateEvent(noise_multiplier=noise, num_rounds=steps)
    assert decode(encode(client_event)) == client_event


@given(st.floats())
def test_floats_come_back_bit_for_bit(value: float) -> None:
    back = read_float(write_float(value))
    assert math.copysign(1, back) == math.copysign(1, value) or math.isnan(value)
    assert back == value or (math.isnan(back) and math.isnan(value))


@pytest.mark.parametrize("text", ["1", "1.00", " 1.0", "1e0", "0x1p0", "Infinity", 1.0, None, 1])
def test_a_float_is_written_in_one_way_only(text: object) -> None:
    with pytest.raises(ValueError, match="float"):
        read_float(text)


def test_the_form_of_a_written_event_never_changes() -> None:
    assert encode(EVENT) == {
        "kind": "dp-sgd",
        "version": 1,
        "noise_multiplier": "4.0",
        "sampling_prob": "0.01",
        "num_steps": 5,
        "privacy_unit": "example",
        "neighboring_relation": "add_or_remove_one",
        "sampling_scheme": "poisson",
    }
    assert encode(CLIENT_EVENT) == {
        "kind": "client-update",
        "version": 1,
        "noise_multiplier": "4.0",
        "num_rounds": 5,
        "privacy_unit": "client",
        "neighboring_relation": "zero_out_one",
        "sampling_scheme": "none",
    }


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "dp-ftrl"},
        {"kind": None},
        {"version": 2},
        {"version": True},
        {"version": "1"},
        {"sampling": "poisson"},
        {"noise_multiplier": 4.0},
        {"noise_multiplier": "nan"},
        {"noise_multiplier": "-4.0"},
        {"sampling_prob": "1.5"},
        {"num_steps": 5.0},
        {"num_steps": True},
        {"num_steps": 0},
        {"num_steps": "5"},
        {"privacy_unit": "user"},
        {"neighboring_relation": "replace_one"},
        {"neighboring_relation": None},
        {"sampling_scheme": "shuffle"},
        {"sampling_scheme": "none"},
        {"num_rounds": 5},
        {"kind": "client-update"},
    ],
)
def test_what_is_not_fully_understood_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(PrivacyError):
        decode(encode(EVENT) | change)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "dp-sgd"},
        {"version": 2},
        {"num_rounds": 0},
        {"num_steps": 5},
        {"privacy_unit": "example"},
        {"neighboring_relation": "add_or_remove_one"},
        {"sampling_scheme": "poisson"},
    ],
)
def test_a_client_event_is_read_as_strictly(change: dict[str, Any]) -> None:
    with pytest.raises(PrivacyError):
        decode(encode(CLIENT_EVENT) | change)


@pytest.mark.parametrize(
    ("event", "field"),
    [(event, field) for event in (EVENT, CLIENT_EVENT) for field in encode(event)],
)
def test_a_missing_field_is_refused(event: PrivacyEvent, field: str) -> None:
    fields = encode(event)
    del fields[field]
    with pytest.raises(PrivacyError):
        decode(fields)


def test_an_event_that_would_come_back_different_is_refused() -> None:
    class Steps(int):
        pass

    odd = DpSgdEvent(noise_multiplier=4.0, sampling_prob=0.01, num_steps=Steps(5))
    with pytest.raises(PrivacyError):
        encode(odd)
    object.__setattr__(odd, "num_steps", 5)
    object.__setattr__(odd, "privacy_unit", "user")
    with pytest.raises(PrivacyError):
        encode(odd)
    with pytest.raises(PrivacyError):
        encode("an event")
