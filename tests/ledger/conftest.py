"""Where a ledger can live, and the data and events that the tests use."""

from collections.abc import Iterator
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
