"""The audit log: who asked for what, and what came of it; entries are chained by hash."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, insert, select

from fedpeft.canonical import write_float
from fedpeft.database.schema import missing_guards
from fedpeft.errors import VerificationError
from fedpeft.ledger.chain import NO_ENTRY, Entry, Head, check_kept, utc_now
from fedpeft_server.records import AuditRecord, JsonValue
from fedpeft_server.state.store import STATE, Store
from fedpeft_server.state.tables import AUDIT

_NOTHING: Mapping[str, JsonValue] = {}
_LONGEST_TEXT: Final = 200


class Audit(Store):
    """The audit log's part of the state."""

    def append_audit(
        self,
        actor: str,
        action: str,
        subject: str,
        outcome: str,
        detail: Mapping[str, JsonValue] = _NOTHING,
    ) -> AuditRecord:
        """Writes the next entry.

        Ids, codes, digests and numbers belong in it. Text that is longer than 200 characters or
        not printable is left out, so that neither a row nor a key gets in by accident.

        Args:
            actor: The name in a certificate, or a part of the server.
            action: What was asked.
            subject: On what.
            outcome: `ok`, or the code of the refusal.
            detail: What else; floats are written as text.
        """
        with self._database.writing() as connection:
            entry = append(
                connection,
                actor=actor,
                action=action,
                subject=subject,
                outcome=outcome,
                detail=detail,
            )
        return _record(entry)

    def audit(self, after: int = 0, limit: int = 1000) -> list[AuditRecord]:
        """Returns at most `limit` entries beyond position `after`, oldest first.

        Raises:
            VerificationError: If one of them is not what was once written.
        """
        query = select(AUDIT).where(AUDIT.c.position > after).order_by(AUDIT.c.position)
        with self._database.reading() as connection:
            return [_record(entry) for entry in _read(connection.execute(query.limit(limit)))]

    def audit_head(self) -> Head:
        """Returns the number of entries and the last one's hash, to be kept elsewhere."""
        with self._database.reading() as connection:
            return _last(connection)[0]

    def verify_audit(self, expected_head: Head | None = None) -> Head:
        """Checks every entry and returns the head.

        Args:
            expected_head: A head that was kept elsewhere; only against it do entries show that
                were cut off at the end.

        Raises:
            VerificationError: If anything is wrong; it names the first entry that is.
        """
        head, last_time, seen = Head(0, NO_ENTRY), "", None
        query = select(AUDIT).order_by(AUDIT.c.position)
        with self._database.reading() as connection:
            with connection.execute(query, execution_options={"yield_per": 1000}) as rows:
                for entry in _read(rows):
                    try:
                        entry.check_follows(head, last_time)
                    except ValueError as error:
                        raise _broken(entry.position, error) from error
                    head, last_time = entry.head, entry.recorded_at
                    if expected_head is not None and head.count == expected_head.count:
                        seen = head.hash
            missing = missing_guards(connection, STATE)
        if missing:
            raise VerificationError(
                f"the trigger {missing[0]} is gone, which keeps entries from being changed: "
                "somebody removed it; the entries themselves follow each other"
            )
        check_kept(expected_head, seen, head, "audit log")
        return head


def append(
    connection: Connection,
    *,
    actor: str,
    action: str,
    subject: str,
    outcome: str,
    detail: Mapping[str, JsonValue],
) -> Entry:
    """Writes the next entry as part of a transaction; see `Audit.append_audit`."""
    head, last_time = _last(connection)
    body = {"actor": actor, "subject": subject, "outcome": outcome, "detail": detail}
    entry = Entry.following(head, last_time, _plain(action), _plain(body), utc_now())
    connection.execute(
        insert(AUDIT).values(
            position=entry.position,
            kind=entry.kind,
            recorded_at=entry.recorded_at,
            clock=entry.clock,
            body=entry.body_text,
            previous=entry.previous,
            hash=entry.hash,
        )
    )
    return entry


def _last(connection: Connection) -> tuple[Head, str]:
    query = select(AUDIT.c.position, AUDIT.c.hash, AUDIT.c.recorded_at)
    row = connection.execute(query.order_by(AUDIT.c.position.desc()).limit(1)).one_or_none()
    return (Head(0, NO_ENTRY), "") if row is None else (Head(row[0], row[1]), row[2])


def _read(rows: Iterable[Iterable[object]]) -> Iterator[Entry]:
    for row in rows:
        fields = tuple(row)
        try:
            yield Entry.stored(fields)
        except ValueError as error:
            raise _broken(fields[0], error) from error


def _broken(position: object, error: ValueError) -> VerificationError:
    return VerificationError(f"entry {position} of the audit log: {error}")


def _record(entry: Entry) -> AuditRecord:
    return AuditRecord(
        position=entry.position,
        at=datetime.fromisoformat(entry.recorded_at),
        actor=entry.body["actor"],
        action=entry.kind,
        subject=entry.body["subject"],
        outcome=entry.body["outcome"],
        previous=entry.previous,
        hash=entry.hash,
        text=entry.to_json(),
    )


def _plain(value: Any) -> Any:
    """Returns it with floats as text, and without text that may be a row, a key or two lines."""
    if isinstance(value, Mapping):
        return {_plain(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return write_float(value)
    if isinstance(value, str):
        fits = len(value) <= _LONGEST_TEXT and value.isprintable()
        return str(value) if fits else f"(left out: {len(value)} characters)"
    return value
