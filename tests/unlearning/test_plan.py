"""Plans: what is written is read, and nothing else; and methods claim what they can."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from fedpeft.errors import ProtocolError
from fedpeft.unlearning.plan import CLAIM_OF, RemovalPlan

ONE, TWO = "1" * 64, "2" * 64


def a_plan(**other: Any) -> RemovalPlan:
    content: dict[str, Any] = {
        "adapter": TWO,
        "affected": (ONE, TWO),
        "aliases": ("production",),
        "method": "loku",
        "claim": "approximate",
        "clean_ancestor": None,
        "guarantee": "none",
        "notes": ("in plain words",),
        "gate": {"max_remaining": 0.1 + 0.2, "max_rows": 64},
    }
    return RemovalPlan(**content | other)


def test_a_plan_comes_back_through_json() -> None:
    for plan in (a_plan(), a_plan(clean_ancestor=ONE, aliases=(), notes=(), gate={})):
        assert RemovalPlan.from_body(json.loads(json.dumps(plan.to_body()))) == plan


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"adapter": "12345678"}, "adapter"),
        ({"affected": []}, "affected"),
        ({"claim": "probable"}, "claim"),
        ({"guarantee": "kept"}, "guarantee"),
        ({"more": 1}, "more"),
        ({"clean_ancestor": ""}, "clean_ancestor"),
    ],
)
def test_a_plan_that_is_none(change: dict[str, Any], place: str) -> None:
    with pytest.raises(ProtocolError, match=f"plan of a removal: {place}"):
        RemovalPlan.from_body(a_plan().to_body() | change)


def test_a_plan_does_not_change() -> None:
    with pytest.raises(ValidationError):
        a_plan().claim = "exact"  # type: ignore[misc]


def test_the_claims_are_those_of_the_methods() -> None:
    """The list here is for those who must not load torch."""
    from fedpeft.unlearning.methods import METHODS, REQUESTABLE

    assert {name: METHODS[name].claim for name in REQUESTABLE} == CLAIM_OF
