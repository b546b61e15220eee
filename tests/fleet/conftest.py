"""A fleet that listens on a free port."""

from collections.abc import Iterator

import pytest

from fedpeft_server.fleet import Fleet
from tests.fleet.parts import Place, make_place


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"))


@pytest.fixture
def fleet(place: Place) -> Iterator[Fleet]:
    with Fleet(place.config()) as fleet:
        yield fleet
