"""Migrations make exactly the tables, in a new database and in an older one."""

import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from fedpeft.database import Database
from fedpeft.errors import UnavailableError
from fedpeft.ledger import Ledger
from fedpeft_server.state import State, StateError
from fedpeft_server.state.store import STATE
from fedpeft_server.state.tables import GUARDS, METADATA, REVISIONS, VERSION_TABLE
from tests.server.state.conftest import Execute
from tests.server.state.samples import a_budget, an_update, begin, finish

_VERSION = f"SELECT version_num FROM {VERSION_TABLE}"


def test_the_list_of_schemas_is_that_of_the_migrations() -> None:
    script = ScriptDirectory(STATE.migrations.parent)
    found = [revision.revision for revision in script.walk_revisions()]
    assert tuple(reversed(found)) == REVISIONS


def test_the_migrations_make_the_tables(location: str) -> None:
    State.open(location).close()
    database = Database(STATE, location, read_only=True, busy_timeout_s=1)
    with database.reading() as connection:
        options = {"version_table": VERSION_TABLE, "compare_type": True}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, METADATA) == []
    database.close()


def test_an_older_state_is_migrated_with_what_is_in_it(location: str, execute: Execute) -> None:
    with State.open(location) as state:
        begin(state)
        state.add_update(an_update(), a_budget())
        finish(state, 1)
        state.append_audit("operator", "submit", "run-1", "ok")
        before = [state.runs(), state.rounds("run-1"), state.budgets(), state.audit()]
    # What 0003 and 0002 added is taken away again.
    for table in ("aliases", "replicas", "removal_events", "removals"):
        execute(f"DROP TABLE server_{table}")
    execute("ALTER TABLE server_runs DROP COLUMN start_from")
    for column in ("status", "manifest_json", "withdrawn_by"):
        execute(f"ALTER TABLE server_adapters DROP COLUMN {column}")
    postgresql = "://" in location
    for guard in GUARDS:
        table = "_".join(guard.split("_")[:2])
        execute(f"DROP TRIGGER {guard}" + (f" ON {table}" if postgresql else ""))
    if postgresql:
        execute("DROP FUNCTION server_append_only", "DROP FUNCTION server_in_order")
    execute(f"UPDATE {VERSION_TABLE} SET version_num = '0001'")
    with State.open(location) as state:
        assert [state.runs(), state.rounds("run-1"), state.budgets(), state.audit()] == before
        state.verify_audit()  # which looks for the triggers too
    assert execute(_VERSION) == [(REVISIONS[-1],)]


def test_a_migration_that_fails_changes_nothing(location: str, execute: Execute) -> None:
    State.open(location).close()
    execute(f"UPDATE {VERSION_TABLE} SET version_num = '0001'")  # its triggers are still there
    with pytest.raises(UnavailableError, match="already exists"):
        State.open(location)
    assert execute(_VERSION) == [("0001",)]


def test_a_newer_schema_is_refused(location: str, execute: Execute) -> None:
    State.open(location).close()
    execute(f"UPDATE {VERSION_TABLE} SET version_num = '0099'")
    with pytest.raises(
        StateError,
        match=rf"the server database .* has schema 0099, this fedpeft knows none after "
        rf"{REVISIONS[-1]}: a newer one wrote it; upgrade fedpeft",
    ):
        State.open(location)
    assert execute(_VERSION) == [("0099",)]


def test_places_where_no_state_can_be(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.db"
    Ledger.open(ledger).close()
    empty = tmp_path / "empty.db"
    empty.touch()
    for place, message in {
        str(tmp_path / "missing" / "server.db"): r"there is no folder .*; create it first",
        str(tmp_path): "is a folder, but a server database is a file",
        str(ledger): r"is an SQLite database of something else \(tables: ledger_datasets",
        str(empty): "is empty, which a server database never is",
        "sqlite://": "a server database needs a file",
        "mysql://user@host/db": "SQLite or PostgreSQL, not in 'mysql'",
    }.items():
        with pytest.raises(StateError, match=message):
            State.open(place)
    with pytest.raises(UnavailableError, match="cannot be reached") as refusal:
        State.open(f"postgresql://owner:secret@/postgres?host={tmp_path}")
    assert "secret" not in str(refusal.value)


def test_a_state_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    State.open(tmp_path / "server.db").close()
    assert (tmp_path / "server.db").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("location", ["postgresql"], indirect=True)  # a file holds one of them
def test_state_and_ledger_share_a_schema(location: str) -> None:
    with Ledger.open(location) as ledger, State.open(location) as state:
        begin(state)
        ledger.verify()
        state.verify_audit()


_OPEN = """
import sys
from fedpeft_server.state import State
sys.stdin.readline()
with State.open(sys.argv[1], busy_timeout_s=60) as state:
    print(state.append_audit("operator", "start", "server", "ok").position)
"""


def test_processes_that_open_a_new_state_at_once(location: str) -> None:
    started = [
        subprocess.Popen(
            [sys.executable, "-c", _OPEN, location],
            cwd=Path(__file__).parents[3],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    positions = [process.communicate()[0].strip() for process in started]
    assert sorted(positions) == ["1", "2", "3"]
    with State.open(location) as state:
        assert state.verify_audit().count == 3


def test_a_closed_state_says_so(location: str) -> None:
    state = State.open(location)
    state.close()
    with pytest.raises(UnavailableError, match="was closed"):
        state.runs()
