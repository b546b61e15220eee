"""Making a database and bringing an older one up to date: in one transaction or not at all."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, inspect, text

from fedpeft.database.database import Database
from fedpeft.database.kind import DatabaseKind
from fedpeft.errors import FedpeftError
from fedpeft.files import sync


def prepare(database: Database, begin: Callable[[Connection], object]) -> None:
    """Makes the database if there is none, and migrates it if it is older.

    Args:
        database: Not yet read.
        begin: Writes what a new one starts with.

    Raises:
        kind.refused: If it can be neither, or is newer than this program.
    """
    kind = database.kind
    if database.path is not None:
        with file_errors_explained(database):
            _prepare_file(database, database.path, begin)
    with database.reading() as connection:
        found = version(connection, database)
    if found == kind.revisions[-1]:
        return
    if database.read_only:
        raise kind.refused(
            f"{database.name} holds no {kind.noun}"
            if found is None
            else f"the {kind.noun} {database.name} has the older schema {found}; open it once for "
            "writing, which migrates it"
        )
    with database.writing() as connection:
        # Again, under the lock: another process may have been first.
        found = version(connection, database)
        if found != kind.revisions[-1]:
            upgrade(connection, kind)
        if found is None:
            begin(connection)


def create_file(database: Database, path: Path, fill: Callable[[Connection], object]) -> bool:
    """Builds the file aside and puts it in place whole; False if another process was faster."""
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.new-", dir=path.parent))
    try:
        new = aside / path.name
        os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        beside = Database(database.kind, new, read_only=False, busy_timeout_s=0)
        try:
            with beside.writing() as connection:
                upgrade(connection, database.kind)
                fill(connection)
        except FedpeftError as error:
            raise type(error)(str(error).replace(str(new), str(path))) from error
        finally:
            beside.close()
        try:
            path.hardlink_to(new)
        except FileExistsError:
            return False
        sync(path.parent)
        return True
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def version(connection: Connection, database: Database) -> str | None:
    """Returns the schema that is there, None where there is none yet.

    Raises:
        kind.refused: If it is a newer one, or the file is of something else.
    """
    kind = database.kind
    tables = set(inspect(connection).get_table_names())
    if kind.version_table not in tables:
        if database.path is not None:
            raise kind.refused(
                f"{database.name} is an SQLite database of something else (tables: "
                f"{', '.join(sorted(tables)[:5]) or 'none'}); name another file"
            )
        return None
    query = text(f"SELECT version_num FROM {kind.version_table}")  # noqa: S608
    versions = connection.execute(query).scalars().all()
    if len(versions) != 1 or versions[0] not in kind.revisions:
        raise kind.refused(
            f"the {kind.noun} {database.name} has schema "
            f"{', '.join(map(str, versions)) or 'unknown'}, this fedpeft knows none after "
            f"{kind.revisions[-1]}: a newer one wrote it; upgrade fedpeft"
        )
    return str(versions[0])


def upgrade(connection: Connection, kind: DatabaseKind) -> None:
    """Runs the migrations that are missing, in the connection's transaction."""
    from alembic import command  # imported here: it is rarely needed and slow to import
    from alembic.config import Config

    config = Config(attributes={"connection": connection, "kind": kind})
    for option, value in {
        "script_location": str(Path(__file__).parent),
        "version_locations": str(kind.migrations),
        "path_separator": "newline",
    }.items():
        config.set_main_option(option, value.replace("%", "%%"))
    command.upgrade(config, "head")


def missing_guards(connection: Connection, kind: DatabaseKind) -> list[str]:
    """Returns the triggers of this kind that somebody removed or switched off."""
    query = (
        "SELECT name FROM sqlite_master WHERE type = 'trigger'"
        if connection.dialect.name == "sqlite"
        else "SELECT tgname FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid "
        "WHERE relnamespace = current_schema()::regnamespace AND tgenabled <> 'D'"
    )
    return sorted(kind.guards - set(connection.execute(text(query)).scalars()))


@contextmanager
def file_errors_explained(database: Database) -> Iterator[None]:
    """Says of an error of the file system which database it is about."""
    try:
        yield
    except OSError as error:
        raise database.kind.unavailable(
            f"the {database.kind.noun} {database.name} cannot be created or opened "
            f"({error.strerror}); check its folder"
        ) from error


def _prepare_file(database: Database, path: Path, begin: Callable[[Connection], object]) -> None:
    kind, noun = database.kind, database.kind.noun
    if path.is_dir():
        raise kind.refused(f"{path} is a folder, but a {noun} is a file; name one inside it")
    if not path.parent.is_dir():
        raise kind.refused(f"there is no folder {path.parent} for the {noun}; create it first")
    if path.exists():
        if path.stat().st_size == 0:
            raise kind.refused(
                f"{path} is empty, which a {noun} never is: it was cut off, or something else made "
                f"it; restore it from a backup, or remove it if there never was a {noun}"
            )
        if not database.read_only and not _writable(path):
            raise kind.unavailable(
                f"the {noun} {path} cannot be written to: the file and its folder must be "
                "writable, and the disk not read-only; nothing was changed"
            )
        return
    if database.read_only:
        raise kind.refused(f"there is no {noun} at {path}")
    create_file(database, path, begin)


def _writable(path: Path) -> bool:
    """Whether the system lets us write; root too is told of a read-only disk or file."""
    return os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)
