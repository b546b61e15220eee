"""What every part of the state has: the database, opened once and shared by all threads."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy import Column, ColumnElement, Connection, Table, func, select

from fedpeft.database import Database, DatabaseKind
from fedpeft.database.schema import prepare
from fedpeft.errors import UnavailableError
from fedpeft_server.state.errors import NotFoundError, StateError
from fedpeft_server.state.tables import GUARDS, METADATA, REVISIONS, RUNS, VERSION_TABLE

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

STATE = DatabaseKind(
    noun="server database",
    metadata=METADATA,
    migrations=Path(__file__).parent / "migrations" / "versions",
    revisions=REVISIONS,
    version_table=VERSION_TABLE,
    guards=GUARDS,
    lock_key=0x6665647065667453,
    num_connections=8,
    refused=StateError,
    unavailable=UnavailableError,
    backup="a backup, as docs/server-state.md says",
    power_cut="undo what was recorded",
)


class Store:
    """An open database."""

    def __init__(self, database: Database) -> None:
        """Use `open`."""
        self._database = database

    @classmethod
    def open(cls, location: str | Path, *, busy_timeout_s: float = 10.0) -> Self:
        """Opens the state, makes it where there is none, migrates it where it is older.

        Args:
            location: A file's path, `sqlite:///path` or `postgresql://user@host/database`.
            busy_timeout_s: How long to wait for another writer.

        Raises:
            StateError: If it is something else, or a newer fedpeft wrote it.
            UnavailableError: If the database cannot be reached.
        """
        database = Database(STATE, location, read_only=False, busy_timeout_s=busy_timeout_s)
        try:
            prepare(database, lambda _: None)
        except BaseException:
            database.close()
            raise
        return cls(database)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the database; who waits for events is let go."""
        self._database.close()


def columns(table: Table, record: type["DataclassInstance"]) -> list[Column[Any]]:
    """Returns the columns that hold a record's fields of the same name."""
    return [table.c[field.name] for field in fields(record) if field.name in table.c]


def values(table: Table, record: "DataclassInstance") -> dict[str, Any]:
    """Returns what goes into these columns."""
    return {column.name: getattr(record, column.name) for column in columns(table, type(record))}


def one(
    connection: Connection, table: Table, record: type["DataclassInstance"], *where: Any
) -> Mapping[str, Any] | None:
    """Returns the record's fields from the one row there is, None where there is none."""
    row = connection.execute(select(*columns(table, record)).where(*where)).mappings().one_or_none()
    return None if row is None else dict(row)


def following(connection: Connection, column: Column[int], *where: ColumnElement[bool]) -> int:
    """Returns the next position; under the write lock no one else takes it."""
    last = connection.execute(select(func.max(column)).where(*where)).scalar_one()
    return 1 if last is None else int(last) + 1


def require_run(connection: Connection, run_id: str) -> None:
    """Checks that there is such a run.

    Raises:
        NotFoundError: If there is none.
    """
    query = select(RUNS.c.run_id).where(RUNS.c.run_id == run_id)
    if connection.execute(query).one_or_none() is None:
        raise NotFoundError(f"there is no run {run_id!r}")
