"""Where a state can live; every test here runs on both databases."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedpeft_server.state import State
from tests.postgres import Server

Execute = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture(params=["sqlite", "postgresql"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place for a new state, in either database."""
    if request.param == "sqlite":
        return str(tmp_path / "server.db")
    server: Server = request.getfixturevalue("postgres_server")
    return server.new_schema()


@pytest.fixture
def state(location: str) -> Iterator[State]:
    with State.open(location) as opened:
        yield opened


@pytest.fixture
def force(location: str, execute: Execute) -> Execute:
    """Runs SQL with the guards off; they are back afterwards."""

    def call(*statements: str) -> list[tuple[Any, ...]]:
        tables = ("server_audit", "server_budgets")
        if "://" in location:
            off = [f"ALTER TABLE {table} DISABLE TRIGGER USER" for table in tables]
            on = [f"ALTER TABLE {table} ENABLE TRIGGER USER" for table in tables]
        else:
            guards = execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
            off = [f"DROP TRIGGER {name}" for name, _ in guards]
            on = [str(sql) for _, sql in guards]
        return execute(*off, *statements, *on)

    return call
