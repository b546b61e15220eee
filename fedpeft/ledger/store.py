"""The chain on its database: read up to its end before every decision, and only ever added to."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, select

from fedpeft.errors import PrivacyError, VerificationError
from fedpeft.ledger import audit, chain, schema
from fedpeft.ledger.chain import Entry
from fedpeft.ledger.database import Database
from fedpeft.ledger.state import State
from fedpeft.ledger.tables import ENTRIES


class Store:
    """An open chain and what it adds up to so far."""

    def __init__(self, database: Database) -> None:
        """Makes or migrates what is there, and reads it.

        Raises:
            LedgerError: If it cannot be opened, or a newer fedpeft wrote it.
            VerificationError: If an entry is not what was once written.
        """
        self._database = database
        self._state = State()
        self._lock = threading.RLock()
        try:
            schema.prepare(database)
            with self.reading():
                pass
        except BaseException:
            database.close()
            raise

    def close(self) -> None:
        """Closes the database."""
        with self._lock:
            self._database.close()

    @contextmanager
    def reading(self) -> Iterator[State]:
        """What the chain adds up to now."""
        with self._lock:
            with self._database.reading() as connection:
                self._follow(connection)
            yield self._state

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """One state of the tables."""
        with self._lock, self._database.reading() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[tuple[Connection, State]]:
        """What the chain adds up to, and stays at until the block ends, but for `append`."""
        with self._lock, self._database.writing() as connection:
            self._follow(connection)
            yield connection, self._state

    def append(self, connection: Connection, kind: str, body: Mapping[str, Any]) -> Entry:
        """Writes the next entry, one in a `writing` block.

        The state takes it in when it is read again, after it was committed.
        """
        state = self._state
        entry = Entry.following(state.head, state.last_time, kind, body, chain.utc_now())
        try:
            state.check(entry)
        except VerificationError as error:
            raise PrivacyError(f"refusing to write what could not be read: {error}") from error
        schema.append(connection, entry)
        return entry

    def _follow(self, connection: Connection) -> None:
        """Takes in what others added, and sees that what was read before is still there."""
        head = self._state.head
        query = select(ENTRIES).where(ENTRIES.c.position >= head.count)
        entries = iter(audit.read_entries(connection.execute(query.order_by(ENTRIES.c.position))))
        if head.count:
            last = next(entries, None)
            if last is None or last.head != head:
                raise VerificationError(
                    f"entry {head.count} of the ledger {self._database.name} is no longer the one "
                    "that was read before: entries were cut off, or an older copy was put in place"
                )
        for entry in entries:
            self._state.follow(entry)
        if self._state.head.count == 0:
            raise VerificationError(f"the ledger {self._database.name} has lost all its entries")
