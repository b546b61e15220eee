"""Migrations: an older ledger is brought up to date, and `tables` is what they make."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from fedpeft.errors import LedgerError
from fedpeft.ledger import Ledger, schema
from fedpeft.ledger.database import Database
from fedpeft.ledger.tables import GUARDS, METADATA, REVISIONS, VERSION_TABLE
from tests.ledger.samples import DELTA, EVENT, rows
from tests.postgres import Server

Execute = Callable[..., list[tuple[Any, ...]]]


def test_the_list_of_schemas_is_that_of_the_migrations() -> None:
    folder = Path(schema.__file__).parent / "migrations"
    found = [revision.revision for revision in ScriptDirectory(folder).walk_revisions()]
    assert tuple(reversed(found)) == REVISIONS


def test_the_migrations_make_the_tables(location: str) -> None:
    Ledger.open(location).close()
    database = Database(location, read_only=True, busy_timeout_s=1)
    with database.reading() as connection:
        options = {"version_table": VERSION_TABLE, "compare_type": True}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, METADATA) == []
    database.close()


def test_an_older_ledger_is_migrated_with_what_is_in_it(location: str, execute: Execute) -> None:
    with Ledger.open(location) as ledger:
        data = ledger.register(rows(0, 5))
        ledger.set_budget(data, epsilon=1.0, delta=DELTA)
        ledger.reserve(data, EVENT)
        head, balance = ledger.head(), ledger.balance(data)
    # What 0002 added is taken away again.
    postgresql = "://" in location
    for guard in GUARDS:
        table = "_".join(guard.split("_")[:2])
        execute(f"DROP TRIGGER {guard}" + (f" ON {table}" if postgresql else ""))
    if postgresql:
        execute("DROP FUNCTION ledger_append_only", "DROP FUNCTION ledger_in_order")
    execute("UPDATE ledger_version SET version_num = '0001'")

    with pytest.raises(LedgerError, match="has the older schema 0001; open it once for writing"):
        Ledger.open(location, read_only=True)
    assert execute("SELECT version_num FROM ledger_version") == [("0001",)]
    with Ledger.open(location) as ledger:
        assert ledger.verify() == head
        assert ledger.balance(data) == balance
    assert execute("SELECT version_num FROM ledger_version") == [(REVISIONS[-1],)]


def test_a_migration_that_fails_changes_nothing(
    location: str, execute: Execute, monkeypatch: pytest.MonkeyPatch
) -> None:
    Ledger.open(location).close()
    execute("UPDATE ledger_version SET version_num = '0001'")  # its triggers are still there
    with pytest.raises(LedgerError, match="already exists"):
        Ledger.open(location)
    assert execute("SELECT version_num FROM ledger_version") == [("0001",)]


def test_of_two_that_make_a_ledger_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.db"
    begin = schema._begin

    def slower(*arguments: Any) -> None:
        monkeypatch.setattr(schema, "_begin", begin)
        with Ledger.open(path) as first:
            first.register(rows(0, 5))
        begin(*arguments)

    monkeypatch.setattr(schema, "_begin", slower)
    with Ledger.open(path) as ledger:
        assert ledger.verify().count == 2
    assert [file.name for file in tmp_path.iterdir()] == ["ledger.db"]


def test_a_ledger_that_could_not_be_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(schema, "_begin", fail)
    with pytest.raises(KeyboardInterrupt):
        Ledger.open(tmp_path / "ledger.db")
    assert list(tmp_path.iterdir()) == []


def test_sqlite_syncs_at_every_commit(tmp_path: Path) -> None:
    database = Database(tmp_path / "ledger.db", read_only=False, busy_timeout_s=3.0)
    schema.prepare(database)
    with database.writing() as connection:
        pragmas = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        values = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in pragmas]
    database.close()
    assert values == ["wal", 2, 1, 3000]  # 2 is FULL


def test_postgresql_must_sync_too(postgres_server: Server) -> None:
    database = Database(postgres_server.url, read_only=False, busy_timeout_s=3.0)
    with database.writing() as connection:
        settings = ("fsync", "synchronous_commit", "lock_timeout")
        values = [connection.exec_driver_sql(f"SHOW {name}").scalar() for name in settings]
    database.close()
    assert values == ["on", "on", "3s"]


def test_a_vanished_file_does_not_come_back_empty(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with Ledger.open(path) as ledger:
        data = ledger.register(rows(0, 5))
    database = Database(path, read_only=False, busy_timeout_s=1)
    path.unlink()
    with pytest.raises(LedgerError, match="cannot be opened"), database.reading():
        pass
    database.close()
    assert data
    assert not path.exists()


def test_the_salt_is_in_the_database_and_nowhere_in_an_export(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with Ledger.open(path) as ledger:
        ledger.register(rows(0, 5))
        exported = "\n".join(entry.to_json() for entry in ledger.history())
    with closing(sqlite3.connect(path)) as file:
        ((salt,),) = file.execute("SELECT salt FROM ledger_secret").fetchall()
        ((digests,),) = file.execute("SELECT digests FROM ledger_datasets").fetchall()
    assert len(salt) == 32
    assert salt.hex() not in exported
    assert len(digests) == 5 * 8
    assert all(digests[i : i + 8].hex() not in exported for i in range(0, 40, 8))


def test_a_ledger_moves_to_another_database(location: str, tmp_path: Path) -> None:
    old = tmp_path / "old.db"
    with Ledger.open(old) as ledger:
        data = ledger.register(rows(0, 5))
        ledger.set_budget(data, epsilon=1.0, delta=DELTA)
        ledger.reserve(data, EVENT)
        head, balance = ledger.head(), ledger.balance(data)
        assert ledger.copy_to(location) == head
        with pytest.raises(LedgerError, match=r"exists already|holds a ledger already"):
            ledger.copy_to(location)
    with Ledger.open(location) as ledger:
        assert ledger.register(rows(0, 5)) == data
        assert ledger.balance(data) == balance
        ledger.reserve(data, EVENT)
        ledger.verify(head)
    back = tmp_path / "back.db"
    with Ledger.open(location) as ledger:
        assert ledger.copy_to(back).count == head.count + 1
    assert sorted(file.name for file in tmp_path.iterdir() if "-" not in file.name) == sorted(
        {"back.db", "old.db"} | (set() if "://" in location else {"ledger.db"})
    )
