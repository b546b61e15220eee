"""Three machines on a network that breaks, as network namespaces: a client is cut off in a round."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fedpeft_server import events
from tests.e2e.checks import check_charges, num_charges
from tests.e2e.conftest import NAMES
from tests.e2e.federation import CONNECTED, Federation, federation
from tests.e2e.network import Network, network

PORT, FLEET_PORT = 7443, 7444


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    with network("server", *NAMES) as made:
        yield made


@pytest.fixture(scope="module")
def apart(
    net: Network, tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path
) -> Iterator[Federation]:
    """A federation whose server and clients are each on a machine of their own."""
    folder = tmp_path_factory.mktemp("apart")
    ports = (PORT, FLEET_PORT)
    with federation(folder, tiny_bert, host=net.hosts["server"], ports=ports) as opened:
        for name in NAMES:
            opened.add_client(name, host=net.hosts[name]).process.start()
        for name in NAMES:
            opened.clients[name].process.line(CONNECTED)
        yield opened
