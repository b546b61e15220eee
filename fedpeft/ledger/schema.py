"""Making a ledger, and bringing an older one up to date, each in one transaction or not at all."""

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, insert, inspect, select, text

from fedpeft.errors import LedgerError
from fedpeft.ledger import chain, fingerprint
from fedpeft.ledger.chain import NO_ENTRY, Entry, Head
from fedpeft.ledger.database import Database
from fedpeft.ledger.tables import ENTRIES, METADATA, REVISIONS, SECRET, VERSION_TABLE


def prepare(database: Database) -> None:
    """Makes the ledger if there is none, and migrates it if it is older.

    Raises:
        LedgerError: If it can be neither, or is newer than this program.
    """
    if database.path is not None:
        with _explained(database):
            _prepare_file(database, database.path)
    with database.reading() as connection:
        version = _version(connection, database)
    if version == REVISIONS[-1]:
        return
    if database.read_only:
        raise LedgerError(
            f"{database.name} holds no ledger"
            if version is None
            else f"the ledger {database.name} has the older schema {version}; open it once for "
            "writing, which migrates it"
        )
    with database.writing() as connection:
        # Again, under the lock: another process may have been first.
        version = _version(connection, database)
        if version != REVISIONS[-1]:
            _upgrade(connection)
        if version is None:
            _begin(connection)


def copy(source: Connection, database: Database) -> None:
    """Makes a ledger with the same entries where there is none.

    Raises:
        LedgerError: If there is one, or it cannot be made.
    """

    def fill(target: Connection) -> None:
        for table in METADATA.sorted_tables:
            query = select(table).order_by(next(iter(table.primary_key)))
            with source.execute(query, execution_options={"yield_per": 1000}) as rows:
                for part in rows.mappings().partitions():
                    target.execute(insert(table), [dict(row) for row in part])

    if database.path is not None:
        with _explained(database):
            if database.path.exists() or not _create_file(database.path, fill):
                raise LedgerError(f"{database.path} exists already; name another place")
        return
    try:
        with database.writing() as connection:
            if _version(connection, database) is not None:
                raise LedgerError(f"{database.name} holds a ledger already; name another place")
            _upgrade(connection)
            fill(connection)
    finally:
        database.close()


@contextmanager
def _explained(database: Database) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LedgerError(
            f"the ledger {database.name} cannot be created or opened ({error.strerror}); "
            "check its folder"
        ) from error


def _prepare_file(database: Database, path: Path) -> None:
    if path.is_dir():
        raise LedgerError(f"{path} is a folder, but a ledger is a file; name one inside it")
    if not path.parent.is_dir():
        raise LedgerError(f"there is no folder {path.parent} for the ledger; create it first")
    if path.exists():
        if path.stat().st_size == 0:
            raise LedgerError(
                f"{path} is empty, which a ledger never is: it was cut off, or something else made "
                "it; restore it from a backup, or remove it if there never was a ledger"
            )
        if not database.read_only and not _writable(path):
            raise LedgerError(
                f"the ledger {path} cannot be written to: the file and its folder must be "
                "writable, and the disk not read-only; nothing was changed"
            )
        return
    if database.read_only:
        raise LedgerError(f"there is no ledger at {path}")
    _create_file(path, _begin)


def _writable(path: Path) -> bool:
    """Whether the system lets us write; root too is told of a read-only disk or file."""
    return os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)


def _create_file(path: Path, fill: Callable[[Connection], None]) -> bool:
    """Builds the ledger aside and puts it in place whole; False if another process was faster."""
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.new-", dir=path.parent))
    try:
        new = aside / path.name
        os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        database = Database(new, read_only=False, busy_timeout_s=0)
        try:
            with database.writing() as connection:
                _upgrade(connection)
                fill(connection)
        except LedgerError as error:
            raise LedgerError(str(error).replace(str(new), str(path))) from error
        finally:
            database.close()
        try:
            path.hardlink_to(new)
        except FileExistsError:
            return False
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return True
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _version(connection: Connection, database: Database) -> str | None:
    """The schema in the database, None where there is no ledger yet."""
    tables = set(inspect(connection).get_table_names())
    if VERSION_TABLE not in tables:
        if database.path is not None:
            raise LedgerError(
                f"{database.name} is an SQLite database of something else (tables: "
                f"{', '.join(sorted(tables)[:5]) or 'none'}); name another file"
            )
        return None
    versions = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalars().all()  # noqa: S608
    if len(versions) != 1 or versions[0] not in REVISIONS:
        raise LedgerError(
            f"the ledger {database.name} has schema {', '.join(map(str, versions)) or 'unknown'}, "
            f"this fedpeft knows none after {REVISIONS[-1]}: a newer one wrote it; upgrade fedpeft"
        )
    return str(versions[0])


def _upgrade(connection: Connection) -> None:
    from alembic import command  # imported here: it is rarely needed and slow to import
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    folder = str(Path(__file__).parent / "migrations")
    config.set_main_option("script_location", folder.replace("%", "%%"))
    command.upgrade(config, "head")


def _begin(connection: Connection) -> None:
    """Writes the secret and the first entry, which binds the chain to it."""
    salt = fingerprint.new_salt()
    connection.execute(insert(SECRET).values(id=1, salt=salt))
    body = {"ledger": uuid.uuid4().hex, "salt_digest": fingerprint.salt_digest(salt), "version": 1}
    first = Entry.following(Head(0, NO_ENTRY), "", "created", body, chain.utc_now())
    append(connection, first)


def append(connection: Connection, entry: Entry) -> None:
    """Writes the entry at the end of the chain."""
    connection.execute(
        insert(ENTRIES).values(
            position=entry.position,
            kind=entry.kind,
            recorded_at=entry.recorded_at,
            clock=entry.clock,
            body=entry.body_text,
            previous=entry.previous,
            hash=entry.hash,
        )
    )
