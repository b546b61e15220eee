"""A server's audit log in the auditor's hands: whatever the server changed shows."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from fedpeft.errors import VerificationError
from fedpeft.ledger.chain import Head
from fedpeft.remote.audit_log import verify_audit_log
from fedpeft.remote.records import AuditEntry
from fedpeft_server.state import State

Log = list[AuditEntry]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    """Five entries, as a server sends them."""
    with State.open(tmp_path / "server.db") as state:
        for i in range(5):
            state.append_audit("operator", "/x", f"run {i}", "ok", {"n": i, "x": 0.5})
        yield [AuditEntry(**vars(record)) for record in state.audit()]


def test_a_sound_log(log: Log) -> None:
    head = verify_audit_log(log)
    assert head == Head(5, log[-1].hash)
    assert verify_audit_log(log, Head(3, log[2].hash)) == head
    assert verify_audit_log([]) == Head(0, "0" * 64)


def edited(entry: AuditEntry, **fields: object) -> AuditEntry:
    """With another text, and what stands beside it to match; only the hash is the old one."""
    read = json.loads(entry.text)
    read["body"].update(fields)
    text = json.dumps(read, sort_keys=True, separators=(",", ":"))
    return replace(entry, text=text, **fields)  # type: ignore[arg-type]


CHANGES: dict[str, Callable[[Log], Log]] = {
    "an entry removed": lambda log: [*log[:2], *log[3:]],
    "the first one removed": lambda log: log[1:],
    "two swapped": lambda log: [log[0], log[2], log[1], *log[3:]],
    "one twice": lambda log: [*log[:3], log[2], *log[3:]],
    "another outcome": lambda log: [*log[:2], edited(log[2], outcome="not-allowed"), *log[3:]],
    "another actor": lambda log: [*log[:2], edited(log[2], actor="mallory"), *log[3:]],
    "another word beside the text": lambda log: [*log[:2], replace(log[2], outcome="no"), *log[3:]],
    "another time": lambda log: [
        *log[:2],
        replace(log[2], at=log[2].at + timedelta(seconds=1)),
        *log[3:],
    ],
    "another hash": lambda log: [*log[:4], replace(log[4], hash="0" * 64)],
    "no entry at all": lambda log: [*log[:4], replace(log[4], text="[]")],
    "no JSON": lambda log: [*log[:4], replace(log[4], text="{")],
    "deep JSON": lambda log: [*log[:4], replace(log[4], text="[" * 100_000)],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_was_changed_shows(log: Log, change: Callable[[Log], Log]) -> None:
    with pytest.raises(VerificationError, match=r"entry \d of the audit log: "):
        verify_audit_log(change(log))


def test_an_end_that_was_cut_off_shows_against_a_kept_head(log: Log) -> None:
    kept = verify_audit_log(log)
    verify_audit_log(log[:3])
    with pytest.raises(VerificationError, match="entries were cut off"):
        verify_audit_log(log[:3], kept)
    with pytest.raises(VerificationError, match="entries were cut off"):
        verify_audit_log(log, Head(5, "1" * 64))
