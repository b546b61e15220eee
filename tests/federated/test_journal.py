import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from fedpeft.dp.accounting import DpSgdEvent, epsilon
from fedpeft.errors import PrivacyError
from fedpeft.federated.journal import Journal

EVENT = DpSgdEvent(noise_multiplier=1.25, sampling_prob=0.1, num_steps=3)
OTHER = DpSgdEvent(noise_multiplier=2.5, sampling_prob=1 / 3, num_steps=1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def filled(path: Path) -> str:
    journal = Journal(path)
    journal.reserve("a", 1, EVENT)
    journal.reserve("b", 1, OTHER)
    journal.reserve("a", 2, OTHER)
    return path.read_text(encoding="utf-8")


def test_a_reservation_is_on_disk_before_reserve_returns(path: Path) -> None:
    journal = Journal(path)
    assert Journal(path).events("a") == []
    for count in range(1, 4):
        journal.reserve("a", count, EVENT)
        assert Journal(path).events("a") == [EVENT] * count
        assert Journal(path).events("b") == []
    assert journal.events("a") == [EVENT] * 3


def test_a_reservation_is_synced_after_it_was_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(path)
    sizes: list[int] = []
    fsync = os.fsync

    def spy(descriptor: int) -> None:
        sizes.append(os.fstat(descriptor).st_size)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    journal.reserve("a", 1, EVENT)
    assert sizes == [path.stat().st_size]


def test_a_reservation_that_cannot_be_synced_is_not_made(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller must not train; what may be on disk counts as spent when it is read again."""
    journal = Journal(path)

    def fail(descriptor: int) -> None:
        raise OSError("disk failed")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk failed"):
        journal.reserve("a", 1, EVENT)
    monkeypatch.undo()
    assert len(Journal(path).events("a")) <= 1


def test_events_come_back_exactly_and_in_order(path: Path) -> None:
    filled(path)
    journal = Journal(path)
    assert journal.events("a") == [EVENT, OTHER]
    assert journal.events("b") == [OTHER]
    assert journal.events("nobody") == []
    assert epsilon(journal.events("a"), 1e-5) == epsilon([EVENT, OTHER], 1e-5)


def test_a_line_cut_off_by_a_crash_is_dropped_and_the_next_one_is_whole(path: Path) -> None:
    """All lines before it count, and a reservation after it can be read."""
    whole = filled(path)
    end = whole.rstrip("\n").rindex("\n") + 1
    for length in (end, end + 1, (end + len(whole)) // 2, len(whole) - 2, len(whole) - 1):
        path.write_text(whole[:length], encoding="utf-8")
        journal = Journal(path)
        assert journal.events("a") == [EVENT]
        assert journal.events("b") == [OTHER]
        journal.reserve("c", 3, OTHER)
        assert Journal(path).events("c") == [OTHER]
        assert Journal(path).events("a") == [EVENT]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{",
        "[]",
        "null",
        '"text"',
        json.dumps({"client_id": "a", "round": 1}),
        json.dumps({"round": 1, "event": asdict(EVENT)}),
        json.dumps({"client_id": "a", "event": asdict(EVENT)}),
        json.dumps({"client_id": "a", "round": 1, "event": asdict(EVENT), "refunded": True}),
        json.dumps({"client_id": "a", "round": 1, "event": asdict(EVENT) | {"weight": 0}}),
        json.dumps({"client_id": "a", "round": 1, "event": {"num_steps": 1}}),
        json.dumps({"client_id": None, "round": 1, "event": asdict(EVENT)}),
        json.dumps({"client_id": "a", "round": "1", "event": asdict(EVENT)}),
        json.dumps({"client_id": "a", "round": 1, "event": asdict(EVENT) | {"num_steps": 0}}),
        json.dumps({"client_id": "a", "round": 1, "event": asdict(EVENT) | {"num_steps": 0.5}}),
        json.dumps({"client_id": "a", "round": 1, "event": asdict(EVENT) | {"num_steps": "3"}}),
        json.dumps(
            {"client_id": "a", "round": 1, "event": asdict(EVENT) | {"noise_multiplier": -1.0}}
        ),
        '{"client_id": "a", "round": 1, "event": {"noise_multiplier": Infinity, '
        '"sampling_prob": 0.1, "num_steps": 1}}',
    ],
)
def test_a_line_that_is_no_event_stops_the_run(path: Path, line: str) -> None:
    """Skipping it would report less than was spent."""
    first, rest = filled(path).split("\n", 1)
    path.write_text(f"{first}\n{line}\n{rest}", encoding="utf-8")
    with pytest.raises(PrivacyError, match=r"journal\.jsonl:2 is no privacy event"):
        Journal(path)
    assert line in path.read_text(encoding="utf-8"), "the evidence was rewritten"


def test_bytes_that_are_no_text_stop_the_run(path: Path) -> None:
    filled(path)
    damaged = bytearray(path.read_bytes())
    damaged[20] = 0xFF
    path.write_bytes(damaged)
    with pytest.raises(PrivacyError, match="is no text"):
        Journal(path)


def test_an_unknown_privacy_unit_is_never_counted_as_a_known_one(path: Path) -> None:
    line = {"client_id": "a", "round": 1, "event": asdict(EVENT) | {"privacy_unit": "client"}}
    path.write_text(json.dumps(line) + "\n", encoding="utf-8")
    with pytest.raises(PrivacyError):
        epsilon(Journal(path).events("a"), 1e-5)
