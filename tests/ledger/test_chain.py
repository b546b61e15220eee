"""The form of an entry, which an auditor's own program relies on."""

import hashlib
import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

import fedpeft.ledger
from fedpeft.canonical import canonical
from fedpeft.ledger import Entry, Head, Ledger
from fedpeft.ledger.chain import NO_ENTRY
from tests.ledger.samples import DELTA, EVENT, rows

NOON = datetime(2026, 1, 2, 12, 0, 0, 5, tzinfo=UTC)


def test_the_form_of_an_entry_never_changes() -> None:
    body = {"dataset": "ab", "epsilon": "6.0", "delta": "1e-05"}
    entry = Entry.following(Head(0, NO_ENTRY), "", "budget", body, NOON)
    text = (
        '{"body":{"dataset":"ab","delta":"1e-05","epsilon":"6.0"},"clock":null,"kind":"budget",'
        f'"position":1,"previous":"{NO_ENTRY}","recorded_at":"2026-01-02T12:00:00.000005+00:00"}}'
    )
    assert entry.hash == hashlib.sha256(text.encode()).hexdigest()
    assert json.loads(entry.to_json()) == json.loads(text) | {"hash": entry.hash}


def test_time_is_kept_in_utc_and_never_goes_back() -> None:
    east = NOON.astimezone(timezone(timedelta(hours=9)))
    assert Entry.following(Head(1, "x"), "", "k", {}, east).recorded_at.startswith("2026-01-02T12")
    later = "2026-01-02T12:00:01.000000+00:00"
    entry = Entry.following(Head(1, "x"), later, "k", {}, NOON)
    assert (entry.recorded_at, entry.clock) == (later, "2026-01-02T12:00:00.000005+00:00")


@pytest.mark.parametrize("value", [1.0, {"a": [1.5]}, {1: "a"}, float("nan"), b"x"])
def test_what_has_no_single_text_is_refused(value: object) -> None:
    with pytest.raises(TypeError):
        canonical(value)


def test_a_program_of_ten_lines_can_check_an_export(tmp_path: Path) -> None:
    """As docs/ledger.md shows it, without any code of ours."""
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        data = ledger.register(rows(0, 5), owner="Würzburg")
        ledger.set_budget(data, epsilon=1.0, delta=DELTA)
        ledger.reserve(data, EVENT, purpose="Lauf »1«")
        export = tmp_path / "export.jsonl"
        export.write_text("".join(entry.to_json() + "\n" for entry in ledger.history()))
        head = ledger.head()
    text = (Path(__file__).parents[2] / "docs" / "ledger.md").read_text()
    program = text.split("```python\n# check_chain.py\n")[1].split("```")[0]
    assert "fedpeft" not in program
    outcome: dict[str, object] = {"__name__": "check", "PATH": str(export)}
    exec(program.replace("sys.argv[1]", "PATH"), outcome)
    assert outcome["last"] == head.hash
    lines = export.read_text().splitlines()
    export.write_text("\n".join([lines[0], lines[1].replace(":5", ":6"), *lines[2:]]) + "\n")
    with pytest.raises(AssertionError):
        exec(program.replace("sys.argv[1]", "PATH"), outcome)


def test_the_public_names() -> None:
    names = ["Balance", "Entry", "Head", "Ledger", "Reservation"]
    assert fedpeft.ledger.__all__ == names
