"""Where a ledger can live, and the data and events that the tests use."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fedpeft.ledger import Ledger
from tests.postgres import Server


@pytest.fixture(params=["sqlite", "postgresql"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place for a new ledger, in either database."""
    if request.param == "sqlite":
        return str(tmp_path / "ledger.db")
    server: Server = request.getfixturevalue("postgres_server")
    return server.new_schema()


@pytest.fixture
def ledger(location: str) -> Iterator[Ledger]:
    with Ledger.open(location) as opened:
        yield opened


@pytest.fixture
def execute(location: str) -> Callable[..., list[tuple[object, ...]]]:
    """Runs SQL behind the ledger's back, as one who has the database can."""

    def call(*statements: str) -> list[tuple[object, ...]]:
        if "://" in location:
            import psycopg

            with closing(psycopg.connect(location)) as connection:
                for statement in statements:
                    cursor = connection.execute(statement)
                rows = cursor.fetchall() if cursor.description else []
                connection.commit()
                return rows
        with closing(sqlite3.connect(location)) as file:
            for statement in statements:
                found = file.execute(statement).fetchall()
            file.commit()
            return found

    return call
