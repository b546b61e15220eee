"""A server's audit log, checked by whoever reads it: the server's word is not enough."""

import json
from collections.abc import Iterable
from datetime import datetime

from fedpeft.canonical import canonical
from fedpeft.errors import VerificationError
from fedpeft.ledger.chain import NO_ENTRY, Entry, Head, check_kept
from fedpeft.remote.records import AuditEntry

_ROW = ("position", "kind", "recorded_at", "clock", "body", "previous", "hash")


def verify_audit_log(entries: Iterable[AuditEntry], expected: Head | None = None) -> Head:
    """Checks that entries follow each other from the first one on, and are what they claim.

    Args:
        entries: The whole log, oldest first.
        expected: A head that was kept elsewhere; only against it does an end that was cut off show.

    Returns:
        The log's head, to be kept elsewhere.

    Raises:
        VerificationError: If anything is wrong; it names the first entry that is.
    """
    head, last_time, seen = Head(0, NO_ENTRY), "", None
    for entry in entries:
        try:
            checked = _checked(entry)
            checked.check_follows(head, last_time)
        except ValueError as error:
            raise VerificationError(f"entry {entry.position} of the audit log: {error}") from error
        head, last_time = checked.head, checked.recorded_at
        if expected is not None and head.count == expected.count:
            seen = head.hash
    check_kept(expected, seen, head, "audit log")
    return head


def _checked(entry: AuditEntry) -> Entry:
    """The entry that the text is, if its hash and the fields beside it are those of the text."""
    try:
        read = json.loads(entry.text)
        body = read["body"]
        written = AuditEntry(
            position=read["position"],
            at=datetime.fromisoformat(read["recorded_at"]),
            actor=body["actor"],
            action=read["kind"],
            subject=body["subject"],
            outcome=body["outcome"],
            previous=read["previous"],
            hash=read["hash"],
            text=entry.text,
        )
        row = [read[name] for name in _ROW]
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError("its text is no entry") from error
    if written != entry:
        raise ValueError("what is said of it is not what its text says")
    row[_ROW.index("body")] = canonical(body)
    return Entry.stored(row)
