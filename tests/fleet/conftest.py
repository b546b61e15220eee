"""A fleet that listens on a free port."""

from collections.abc import Iterator

import pytest

from fedpeft_server.fleet import Fleet
from tests.fleet.parts import Peer, Place, make_place


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"))


@pytest.fixture
def fleet(place: Place) -> Iterator[Fleet]:
    with Fleet(place.config()) as fleet:
        yield fleet


@pytest.fixture(autouse=True)
def _no_peer_stays() -> Iterator[None]:
    yield
    while Peer.opened:
        Peer.opened.pop().close()
