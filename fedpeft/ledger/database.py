"""The database under a ledger: how it is opened, what a transaction is, what its errors mean.

SQLite keeps a write-ahead log and syncs it at every commit; PostgreSQL must do the same or is
refused. A writer holds the one write lock from its first read to its commit, so that what it
decided is still true when it writes.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import QueuePool

from fedpeft.errors import LedgerError

# A transaction with this key is the one writer; any other program's key must differ.
_POSTGRES_LOCK = 0x666564706566744C


class Database:
    """One connection to a ledger's database, opened when it is first needed."""

    def __init__(self, location: str | Path, *, read_only: bool, busy_timeout_s: float) -> None:
        """Reads the location; nothing is opened yet.

        Raises:
            LedgerError: If it names neither a path nor a database that a ledger can use.
        """
        if not busy_timeout_s >= 0:
            raise LedgerError(f"busy_timeout_s must not be negative, got {busy_timeout_s}")
        self.read_only = read_only
        self._busy_timeout_s = busy_timeout_s
        self.path, self.url = _located(location)
        self.name = str(self.path or (self.url and self.url.render_as_string(hide_password=True)))
        self._engine: Engine | None = None
        self._pid = os.getpid()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """One state of the database, whatever others write meanwhile."""
        with self._explained(), self._connected() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """The only writer until the block ends; committed durably, or undone if it raises.

        Raises:
            LedgerError: If the lock is not to be had in time, or the database refuses to write.
        """
        if self.read_only:
            raise LedgerError(f"{self.name} was opened for reading only")
        with self._explained(), self._connected(write=True) as connection:
            yield connection

    def close(self) -> None:
        """Closes the connection."""
        if self._engine is not None:
            # After a fork the connection is the parent's; to touch it would corrupt both.
            self._engine.dispose(close=self._pid == os.getpid())
            self._engine = None

    @contextmanager
    def _connected(self, *, write: bool = False) -> Iterator[Connection]:
        if self._pid != os.getpid():
            self.close()
            self._pid = os.getpid()
        if self._engine is None:
            self._engine = self._sqlite() if self.path else self._postgresql()
        with self._engine.connect() as plain:
            connection = plain.execution_options(ledger_write=write)
            if not self.path and not write:
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                if write and not self.path:
                    lock = text("SELECT pg_advisory_xact_lock(:key)")
                    connection.execute(lock, {"key": _POSTGRES_LOCK})
                yield connection

    def _sqlite(self) -> Engine:
        assert self.path is not None
        engine = create_engine(
            "sqlite://", creator=self._sqlite_connection, poolclass=QueuePool, pool_size=1
        )

        @event.listens_for(engine, "begin")
        def _begin(connection: Connection) -> None:
            write = connection.get_execution_options().get("ledger_write")
            connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

        return engine

    def _sqlite_connection(self) -> sqlite3.Connection:
        assert self.path is not None
        # Never "rwc": a ledger that has vanished must not come back empty.
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
            pool_size=1,
            pool_pre_ping=True,
            connect_args={"connect_timeout": timeout_s},
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
                raise LedgerError(
                    f"{self.name} runs with fsync = {durable}, so that a power cut would refund "
                    "spent budget; set fsync = on in its configuration"
                )

        return engine

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            reason = _reason(error.orig, self._busy_timeout_s)
            raise LedgerError(f"the ledger {self.name} {reason}") from error
        except sqlite3.Error as error:
            raise LedgerError(
                f"the ledger {self.name} {_reason(error, self._busy_timeout_s)}"
            ) from error
        except UnicodeDecodeError as error:
            # SQLite quotes its damaged file in its own message.
            raise LedgerError(f"the ledger {self.name} {_DAMAGED}") from error
        except SQLAlchemyError as error:
            raise LedgerError(f"the ledger {self.name} cannot be used ({error})") from error


def _located(location: str | Path) -> tuple[Path | None, URL | None]:
    """A path, or the URL of a server."""
    if isinstance(location, Path) or "://" not in location:
        return Path(location), None
    try:
        url = make_url(location)
    except ArgumentError as error:
        raise LedgerError(f"{location!r} is no database URL ({error})") from error
    if url.drivername == "sqlite":
        if url.database in (None, "", ":memory:") or url.query:
            raise LedgerError("a ledger needs a file: sqlite:///relative.db or sqlite:////full.db")
        return Path(str(url.database)), None
    if url.drivername not in ("postgresql", "postgres", "postgresql+psycopg"):
        raise LedgerError(
            f"a ledger lives in SQLite or PostgreSQL, not in {url.drivername!r}; give a path, or "
            "postgresql://USER@HOST/DATABASE"
        )
    url = url.set(drivername="postgresql+psycopg")
    try:
        url.get_dialect().import_dbapi()
    except (ImportError, NoSuchModuleError) as error:
        raise LedgerError(
            "a ledger in PostgreSQL needs the driver: pip install 'fedpeft[postgresql]'"
        ) from error
    return None, url


_UNCHANGED = "nothing was changed"
_DAMAGED = (
    "is damaged or no ledger at all; restore it from a backup that is not older than the last "
    "release, or the budget spent since is lost"
)


def _reason(error: BaseException | None, busy_timeout_s: float) -> str:
    """What the driver's error means to the one who runs this."""
    code = getattr(error, "sqlite_errorname", None) or getattr(error, "sqlstate", None) or ""
    message = next(iter(str(error).splitlines()), "no reason given").rstrip(".")
    if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")) or code == "55P03":
        return (
            f"has been locked by another process for more than {busy_timeout_s:g} s; {_UNCHANGED}; "
            "try again, or end the process that holds it"
        )
    if code.startswith("SQLITE_READONLY") or code in ("25006", "42501"):
        return (
            f"cannot be written to ({message}); {_UNCHANGED}; a ledger file and its folder must "
            "be writable, and a database user needs INSERT on the ledger's tables"
        )
    if code == "SQLITE_FULL" or code == "53100":
        return f"has no room on its disk ({message}); {_UNCHANGED}; free some space"
    if code == "SQLITE_NOTADB" or code.startswith("SQLITE_CORRUPT"):
        return f"{_DAMAGED} ({message})"
    if code.startswith("SQLITE_CANTOPEN"):
        return f"cannot be opened ({message}); check that its folder is there and writable"
    if code.startswith("SQLITE_CONSTRAINT") or code in ("23505", "P0001"):
        return f"refused an entry ({message}); another process wrote first: try again"
    if code:
        return f"failed ({code}: {message}); nothing is taken as recorded"
    return f"cannot be reached ({message}); check the address and that the server runs"
