"""Equal rows are known again in whatever form they come; what is stored says nothing of them."""

import random
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.errors import DataError
from fedpeft.ledger.fingerprint import (
    fingerprint_of,
    new_salt,
    num_rows,
    num_shared,
    pack_rows,
    shared_rows,
    unpack,
)

SALT = bytes(32)


def packed(*rows: dict[str, object], owner: str = "", salt: bytes = SALT) -> bytes:
    return pack_rows(rows, owner=owner, salt=salt)


def test_the_form_of_a_fingerprint_never_changes() -> None:
    found = packed({"text": "Hello", "label": 1}, {"text": "Hi", "label": 2.5})
    assert found.hex() == "03220b73b7fafba0a4f1ab3d6b8e33dd"
    name = "87bb82b03c0300f1b0e6adb7f6f733e44dc0e7662080739d8a665933c59a0d96"
    assert fingerprint_of(found) == name


@pytest.mark.parametrize(
    "same",
    [
        {"label": 3, "text": "Grüße aus  Köln\n"},
        {"body": "GRÜSSE AUS KÖLN", "queue": "3"},
        {"text": "gru\u0308ße aus Ko\u0308ln", "label": "3.00"},
        {"text": "grüße aus köln", "label": 3.0, "note": None, "more": " "},
        {"text": "grüße aus köln", "label": "30e-1"},
    ],
)
def test_spelling_makes_no_new_row(same: dict[str, object]) -> None:
    assert packed(same) == packed({"text": "grüße aus köln", "label": 3})


@pytest.mark.parametrize(
    "other",
    [
        {"text": "message", "label": 4},
        {"text": "message.", "label": 3},
        {"text": "message", "label": 3, "id": 7},
        {"text": "message"},
        {"text": "message", "label": "-3"},
        {"text": "message", "label": "3x"},
        {"text": "message", "label": 30},
        {"text": "message", "label": 3.5},
        {"text": "message", "label": float("nan")},
        {"text": "message", "label": [3, 4]},
    ],
)
def test_another_content_is_another_row(other: dict[str, object]) -> None:
    assert packed(other) != packed({"text": "message", "label": 3})


def test_long_numbers_are_not_rounded() -> None:
    digits = "12345678901234567890123456789012345678901"
    assert packed({"id": digits + "1"}) != packed({"id": digits + "2"})
    assert packed({"id": "0.1"}) == packed({"id": 0.1})
    assert packed({"id": "-0.0"}) == packed({"id": 0})
    assert packed({"id": "1e999999999"}) == packed({"id": "10e999999998"})


def test_owner_and_salt_separate() -> None:
    row: dict[str, object] = {"text": "message"}
    assert len({packed(row), packed(row, owner="a"), packed(row, salt=new_salt())}) == 3
    assert packed({"a": "x", "b": "y"}) != packed({"b": "y"}, owner="x")


def test_rows_without_content_are_refused() -> None:
    with pytest.raises(DataError, match="row 2 of the data set has no value"):
        packed({"text": "x"}, {"text": "", "label": None})
    with pytest.raises(DataError, match="without rows"):
        packed()


@given(st.lists(st.integers(0, 30), min_size=1), st.randoms())
def test_order_and_repetition_do_not_count(numbers: list[int], order: random.Random) -> None:
    rows: list[dict[str, object]] = [{"text": f"n{i}"} for i in numbers]
    again = rows + order.choices(rows, k=3)
    order.shuffle(again)
    assert packed(*again) == packed(*rows)
    assert num_rows(packed(*rows)) == len(set(numbers))


@given(st.lists(st.sets(st.integers(0, 12), min_size=1), max_size=5))
def test_shared_rows_are_those_of_the_sets(sets: list[set[int]]) -> None:
    blobs = {
        str(k): pack_rows(({"n": f"n{i}"} for i in numbers), owner="", salt=SALT)
        for k, numbers in enumerate(sets)
    }
    pairs = {
        frozenset((str(i), str(j))): len(sets[i] & sets[j])
        for i, j in combinations(range(len(sets)), 2)
    }
    assert shared_rows(blobs) == {pair: count for pair, count in pairs.items() if count}
    for pair, count in pairs.items():
        first, second = pair
        assert num_shared(unpack(blobs[first]), unpack(blobs[second])) == count


def test_hashes_out_of_order_are_refused() -> None:
    found = packed({"a": "x"}, {"a": "y"})
    with pytest.raises(ValueError, match="not sorted"):
        unpack(found[8:] + found[:8])
    with pytest.raises(ValueError, match="not sorted"):
        unpack(found[:8] * 2)
