"""What docs/server-state.md tells an operator: privileges, backup and restore."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from fedpeft.errors import UnavailableError, VerificationError
from fedpeft_server.records import RunStatus
from fedpeft_server.state import State
from fedpeft_server.state.tables import METADATA, VERSION_TABLE
from tests.postgres import Server
from tests.server.state.samples import (
    NOW,
    SOON,
    a_budget,
    a_client,
    an_update,
    begin,
    enrol,
    finish,
)

_ONLY_ADDED_TO = ("server_audit", "server_budgets")


def test_a_user_needs_no_more_than_the_documented_privileges(postgres_server: Server) -> None:
    import psycopg

    location = postgres_server.new_schema()
    State.open(location).close()
    schema = location.rsplit("%3D", 1)[1]
    with closing(psycopg.connect(location, autocommit=True)) as owner:
        owner.execute("CREATE ROLE coordinator LOGIN")
        owner.execute(f"GRANT USAGE ON SCHEMA {schema} TO coordinator")
        owner.execute(f"GRANT SELECT ON {VERSION_TABLE} TO coordinator")
        for table in METADATA.tables:
            rights = "SELECT, INSERT" + ("" if table in _ONLY_ADDED_TO else ", UPDATE, DELETE")
            owner.execute(f"GRANT {rights} ON {table} TO coordinator")
    location = location.replace("//owner@", "//coordinator@")
    with State.open(location) as state:
        enrol(state, a_client())
        state.seen("north", NOW)
        begin(state)
        state.set_run_status("run-1", RunStatus.RUNNING)
        state.add_update(an_update(), a_budget(epsilon_spent=2.0))
        state.add_update(an_update(round_number=2), a_budget(epsilon_spent=1.0))
        finish(state, 1)
        state.revoke_client("north", "left", NOW)
        assert state.use_nonce("a1", b"nonce", SOON, NOW)
        state.add_event("run-1", "note")
        assert state.verify_audit().count == 1
    with closing(psycopg.connect(location)) as clerk:
        for table in _ONLY_ADDED_TO:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                clerk.execute(f"DELETE FROM {table}")
            clerk.rollback()


def test_a_user_without_privileges_changes_nothing(postgres_server: Server) -> None:
    import psycopg

    location = postgres_server.new_schema()
    with State.open(location) as state:
        begin(state)
    schema = location.rsplit("%3D", 1)[1]
    with closing(psycopg.connect(location, autocommit=True)) as owner:
        owner.execute("CREATE ROLE onlooker LOGIN")
        owner.execute(f"GRANT USAGE ON SCHEMA {schema} TO onlooker")
        owner.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO onlooker")
    with State.open(location.replace("//owner@", "//onlooker@")) as state:
        assert len(state.runs()) == 1
        with pytest.raises(UnavailableError, match=r"permission denied.*nothing was changed"):
            state.set_run_status("run-1", RunStatus.FAILED)


def test_a_backup_taken_while_it_is_open_is_a_state(tmp_path: Path) -> None:
    """And after it is put back the mirror is old until the clients speak again."""
    old = tmp_path / "backup.db"
    with State.open(tmp_path / "server.db") as state:
        begin(state)
        state.add_update(an_update(), a_budget(epsilon_spent=1.0))
        finish(state, 1)
        state.append_audit("operator", "back up", "server", "ok")
        with (
            closing(sqlite3.connect(tmp_path / "server.db")) as source,
            closing(sqlite3.connect(old)) as target,
        ):
            source.backup(target)
        state.add_update(an_update(round_number=2), a_budget(round_number=2, epsilon_spent=2.0))
        finish(state, 2)
        state.append_audit("operator", "watch", "run-1", "ok")
        kept = state.audit_head()
    with State.open(old) as state:
        with pytest.raises(VerificationError, match="ends before it"):
            state.verify_audit(kept)
        assert state.verify_audit().count == 1
        assert [budget.epsilon_spent for budget in state.budgets()] == [1.0]
        # The client is asked for the round again, and answers with what it stored.
        state.add_update(an_update(round_number=2), a_budget(round_number=2, epsilon_spent=2.0))
        finish(state, 2)
        assert [budget.epsilon_spent for budget in state.budgets()] == [2.0]
