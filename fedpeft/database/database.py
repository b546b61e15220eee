"""How a database is opened, and what a transaction is.

SQLite keeps a write-ahead log and syncs it at every commit; PostgreSQL must do the same or is
refused. A writer holds the one write lock from its first read to its commit, so that what it
decided is still true when it writes.
"""

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.pool import QueuePool

from fedpeft.database.kind import DatabaseKind
from fedpeft.database.location import located
from fedpeft.database.reasons import DRIVER_ERRORS, busy, explained

_SCRUB_PATIENCE_MS: Final = 1000
# A server that vanished without a word would keep its writer waiting for hours.
_NOTICES_SILENCE: Final = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,  # ms
}


class Database:
    """Connections to one database, opened when they are first needed; threads may share them.

    A process forked from one that is not inside a call may go on with it.
    """

    def __init__(
        self, kind: DatabaseKind, location: str | Path, *, read_only: bool, busy_timeout_s: float
    ) -> None:
        """Reads the location; nothing is opened yet.

        Raises:
            kind.refused: If it names neither a path nor a database that can be used.
        """
        if not busy_timeout_s >= 0:
            raise kind.refused(f"busy_timeout_s must not be negative, got {busy_timeout_s}")
        self.kind = kind
        self.read_only = read_only
        self._busy_timeout_s = busy_timeout_s
        self.path, self.url = located(kind, location)
        self.name = str(self.path or (self.url and self.url.render_as_string(hide_password=True)))
        self._engine: Engine | None = None
        self._closed = False
        self._pid = os.getpid()
        self._opening = threading.Lock()
        # Threads queue here: those that wait for SQLite's own lock may wait for ever.
        self._turn = threading.Lock()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """One state of the database, whatever others write meanwhile.

        Raises:
            kind.unavailable: If the database cannot be read.
        """
        with self._explained(), self._connected() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """The only writer until the block ends; committed durably, or undone if it raises.

        Raises:
            kind.unavailable: If the lock is not to be had in time, or the database refuses.
        """
        if self.read_only:
            raise self.kind.refused(f"{self.name} was opened for reading only")
        if not self._turn.acquire(timeout=self._busy_timeout_s):
            raise busy(self.kind, self.name, self._busy_timeout_s, "thread")
        try:
            with self._explained(), self._connected(write=True) as connection:
                yield connection
        finally:
            self._turn.release()

    def scrub(self) -> bool:
        """Empties SQLite's log, where what was deleted would stand for a while yet.

        PostgreSQL has a log of its own, which it keeps for as long as it is configured to.

        Returns:
            Whether it did; not where somebody reads for too long, nor in PostgreSQL.

        Raises:
            kind.unavailable: If the database cannot be reached.
        """
        if self.path is None or not self._turn.acquire(timeout=self._busy_timeout_s):
            return False
        try:
            with self._explained(), closing(self._sqlite_connection()) as connection:
                connection.execute(f"PRAGMA busy_timeout = {_SCRUB_PATIENCE_MS}")
                (is_busy, *_) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                return not is_busy
        finally:
            self._turn.release()

    def close(self) -> None:
        """Closes the connections, those in use when they are no longer; it stays closed."""
        with self._opening:
            self._closed = True
            self._dispose()

    @contextmanager
    def _connected(self, *, write: bool = False) -> Iterator[Connection]:
        engine = self._opened()
        pool = engine.pool
        try:
            with engine.connect() as plain:
                connection = plain.execution_options(fedpeft_write=write)
                if not self.path and not write:
                    connection = connection.execution_options(isolation_level="REPEATABLE READ")
                with connection.begin():
                    if write and not self.path:
                        lock = text("SELECT pg_advisory_xact_lock(:key)")
                        connection.execute(lock, {"key": self.kind.lock_key})
                    yield connection
        finally:
            if self._engine is not engine:  # closed meanwhile, without this connection
                pool.dispose()

    def _opened(self) -> Engine:
        with self._opening:
            if self._closed:
                raise self.kind.unavailable(f"the {self.kind.noun} {self.name} was closed")
            if self._pid != os.getpid():
                self._dispose()
                self._pid = os.getpid()
            if self._engine is None:
                self._engine = self._sqlite() if self.path else self._postgresql()
            return self._engine

    def _dispose(self) -> None:
        if self._engine is not None:
            # After a fork the connection is the parent's; to touch it would corrupt both.
            self._engine.dispose(close=self._pid == os.getpid())
            self._engine = None

    def _sqlite(self) -> Engine:
        assert self.path is not None
        engine = create_engine(
            "sqlite://",
            creator=self._sqlite_connection,
            poolclass=QueuePool,
            pool_size=self.kind.num_connections,
        )

        @event.listens_for(engine, "begin")
        def _begin(connection: Connection) -> None:
            write = connection.get_execution_options().get("fedpeft_write")
            connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

        return engine

    def _sqlite_connection(self) -> sqlite3.Connection:
        assert self.path is not None
        # Never "rwc": a database that has vanished must not come back empty.
        mode = "mode=rw"
        if self.read_only:
            log = self.path.with_name(self.path.name + "-wal")
            # Without its log's index SQLite reads a file only if told that nobody writes to it.
            settled = not (log.exists() and log.stat().st_size)
            sealed = settled and not os.access(self.path.parent, os.W_OK)
            mode = "mode=ro&immutable=1" if sealed else "mode=ro"
        connection = sqlite3.connect(
            f"file:{quote(str(self.path.absolute()))}?{mode}",
            uri=True,
            timeout=self._busy_timeout_s,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA recursive_triggers = ON")
            if not self.read_only:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")
                # What was deleted is overwritten, and not only forgotten.
                connection.execute("PRAGMA secure_delete = ON")
        except BaseException:
            connection.close()
            raise
        return connection

    def _postgresql(self) -> Engine:
        assert self.url is not None
        timeout_s = max(2, round(self._busy_timeout_s))  # libpq knows nothing below two
        engine = create_engine(
            self.url,
            poolclass=QueuePool,
            pool_size=self.kind.num_connections,
            pool_pre_ping=True,
            connect_args={"connect_timeout": timeout_s} | _NOTICES_SILENCE,
        )

        @event.listens_for(engine, "connect")
        def _settings(connection: Any, record: object) -> None:
            with connection.cursor() as cursor:
                cursor.execute("SET synchronous_commit = on")
                # 0 would mean for ever.
                cursor.execute(f"SET lock_timeout = {max(1, round(self._busy_timeout_s * 1000))}")
                if self.read_only:
                    cursor.execute("SET default_transaction_read_only = on")
                durable = cursor.execute("SHOW fsync").fetchone()[0]
            connection.commit()
            if durable != "on":
                raise self.kind.refused(
                    f"{self.name} runs with fsync = {durable}, so that a power cut would "
                    f"{self.kind.power_cut}; set fsync = on in its configuration"
                )

        return engine

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except DRIVER_ERRORS as error:
            raise explained(error, self.kind, self.name, self._busy_timeout_s) from error
