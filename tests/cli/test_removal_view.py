"""What a removal's events look like, also those that a server should not have sent."""

import io
from datetime import UTC, datetime
from typing import Any

import pytest
from rich.console import Console

from fedpeft.cli.removal_view import RemovalView, describe
from fedpeft.remote.removal_records import RemovalEvent
from fedpeft_server.removals import events

LINES: dict[str, tuple[dict[str, Any], str]] = {
    events.STATE: ({"state": "failed", "reason": "too late"}, "failed: too late"),
    events.RECORDS: ({"size_bytes": 10}, "the sealed records came, 10 bytes"),
    events.ATTEMPT: ({"number": 2, "max_attempts": 3}, "the job begins: 2 of 3"),
    events.PROGRESS: ({"phase": "loku", "share": 0.5}, "loku 50.0 %"),
    events.LOST: ({"what": "the worker was lost"}, "it begins again: the worker was lost"),
    events.GATE: (
        {"passed": False, "reasons": ["extraction", "change"], "measured_by": "server"},
        "the gate is not passed, measured by the server: extraction; change",
    ),
    events.PUBLISHED: (
        {"adapter": "5" * 8, "aliases": ["production"], "withdrawn": ["1", "2"], "receipt": "3"},
        "adapter 55555555: production; 2 withdrawn",
    ),
    events.CONFIRMED: ({"replicas": ["a", "b"]}, "served by 2 replicas"),
    events.UNCONFIRMED: (
        {"replicas": [{"replica": "a", "problem": "no disk"}]},
        "not served by every replica: a: no disk",
    ),
    events.LATE: ({"deadline": "2026-11-26"}, "the deadline has passed (2026-11-26)"),
    events.NOTE: ({"message": "again"}, "note: again"),
}


def an_event(kind: str, body: dict[str, Any]) -> RemovalEvent:
    return RemovalEvent(position=1, at=datetime(2026, 11, 26, tzinfo=UTC), kind=kind, body=body)


def test_every_kind_has_its_line() -> None:
    assert set(LINES) == set(events.KINDS)
    for kind, (body, line) in LINES.items():
        assert describe(an_event(kind, body))[0] == line


@pytest.mark.parametrize("kind", [*events.KINDS, "something-new"])
@pytest.mark.parametrize(
    "body",
    [
        {},
        {"share": "half", "phase": None, "reasons": 3, "replicas": [1], "aliases": "x"},
        {"state": "[red]x[/red]", "message": "\x1b[31m", "what": "a\nb", "phase": "[bold]"},
    ],
    ids=["empty", "odd", "hostile"],
)
@pytest.mark.parametrize("terminal", [True, False])
def test_whatever_comes_is_one_line_and_no_markup(
    kind: str, body: dict[str, Any], terminal: bool
) -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=terminal, width=200, color_system=None)
    with RemovalView(console) as view:
        view.show(an_event(kind, body))
    assert "\x1b[31m" not in shown.getvalue()
    if not terminal:
        assert shown.getvalue().count("\n") == 1
