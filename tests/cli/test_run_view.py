"""How events are shown: every kind in words, odd ones as they are, none as markup."""

import io
from datetime import UTC, datetime
from typing import Any

import pytest
from rich.console import Console

from fedpeft.cli.run_view import RunView, describe
from fedpeft.remote.records import RunEvent
from fedpeft_server import events

BODIES: dict[str, dict[str, Any]] = {
    events.STATUS: {"status": "failed", "reason": "no quorum"},
    events.WAITING: {"accepted": 1, "needed": 3},
    events.ACCEPTED: {"num_examples": 120},
    events.REFUSED: {"code": "policy", "message": "the client's policy does not allow it"},
    events.PLANNED: {"clients": ["a", "b"], "num_rounds": 5, "target_epsilon": 6.0, "delta": 1e-5},
    events.ROUND_STARTED: {"cohort": ["a", "b"]},
    events.UPDATE: {"size_bytes": 10, "norm": 1.0, "epsilon_spent": 0.501, "train_seconds": 2.0},
    events.REJECTED: {"code": "ProtocolError"},
    events.ROUND_FINISHED: {
        "cohort": ["a"],
        "missing": {"b": "late"},
        "metrics": {"accuracy": 0.5},
        "max_epsilon": 1.001,
        "adapter": "ab",
        "seconds": 3.0,
    },
    events.NOTE: {"message": "begun again"},
    events.EXPORTED: {"adapter": "abcd", "metrics": {}},
}
SHOWN = {
    events.STATUS: "failed: no quorum",
    events.WAITING: "waiting for clients: 1 of 3",
    events.ACCEPTED: "clinic: takes part with 120 rows",
    events.REFUSED: "round 2: clinic: refused (policy): the client's policy does not allow it",
    events.PLANNED: "2 clients, 5 rounds, ε ≤ 6.00",
    events.ROUND_STARTED: "round 2: 2 clients are asked",
    events.UPDATE: "round 2: clinic: update, ε 0.51 spent",
    events.REJECTED: "round 2: clinic: update cannot be used (ProtocolError)",
    events.ROUND_FINISHED: "round 2: accuracy 50.0 %, largest ε 1.01, 1 missing, 3.0 s",
    events.NOTE: "round 2: note: begun again",
    events.EXPORTED: "adapter abcd exported",
}


def event(kind: str, body: dict[str, Any], client_id: str | None = "clinic") -> RunEvent:
    return RunEvent(
        position=1,
        at=datetime(2026, 11, 25, 12, 30, 5, tzinfo=UTC),
        kind=kind,
        round=2,
        client_id=client_id,
        body=body,
    )


def test_every_kind_has_words() -> None:
    assert set(SHOWN) == set(events.KINDS)


@pytest.mark.parametrize("kind", events.KINDS)
def test_an_event_in_words(kind: str) -> None:
    assert describe(event(kind, BODIES[kind]))[0] == SHOWN[kind]


@pytest.mark.parametrize("kind", [*events.KINDS, "newer-kind"])
@pytest.mark.parametrize(
    "body",
    [
        {},
        {"metrics": [1], "cohort": 3, "missing": "x", "max_epsilon": "y", "seconds": None},
        {"metrics": {"accuracy": float("nan")}, "max_epsilon": float("inf"), "clients": None},
    ],
)
def test_an_odd_body_is_still_shown(kind: str, body: dict[str, Any]) -> None:
    assert describe(event(kind, body))[0]


def test_a_run_without_privacy_says_so() -> None:
    body = {"clients": ["a"], "num_rounds": 5, "target_epsilon": None, "delta": None}
    assert "NO PRIVACY" in describe(event(events.PLANNED, body))[0]


def test_a_server_cannot_steer_the_terminal() -> None:
    written = io.StringIO()
    with RunView(3, Console(file=written, force_terminal=True, width=200)) as view:
        view.show(event(events.NOTE, {"message": "\x1b]0;owned\x07 [red]x[/red] \u202egnp"}))
        view.show(event("kind\n[bold]", {}, client_id="a\x1b[2J"))
    text = written.getvalue()
    assert "\x1b]0;" not in text
    assert "\x1b[2J\n" not in text
    assert "[red]x[/red]" in text
    assert "\u202e" not in text
