"""Machines on a network that breaks, as network namespaces: a client is cut off in a round."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedpeft_server import events
from tests.e2e.checks import check_charges, num_charges
from tests.e2e.crashes import LONG_ROUND
from tests.e2e.federation import CONNECTED, NAMES, Federation, Watched, federation
from tests.e2e.network import Network, network

pytestmark = pytest.mark.e2e

PORT, FLEET_PORT = 7443, 7444
BANK = "bank"
# What each port of the server answers to somebody on another machine.
SCAN = """
import asyncio, sys

async def opens(port):
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(sys.argv[1], port), 30)
    except OSError:
        return None
    writer.close()
    return port

async def scan():
    found = []
    for first in range(1, 65536, 500):
        ports = range(first, min(first + 500, 65536))
        found += await asyncio.gather(*map(opens, ports))
    print(*(port for port in found if port))

asyncio.run(scan())
"""


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    with network("server", *NAMES) as made:
        yield made


@pytest.fixture(scope="module")
def apart(
    net: Network, tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path
) -> Iterator[Federation]:
    """A federation whose server and clients are each on a machine of their own."""
    folder, ports = tmp_path_factory.mktemp("apart"), (PORT, FLEET_PORT)
    with federation(folder, tiny_bert, host=net.hosts["server"], ports=ports) as opened:
        for name in NAMES:
            opened.add_client(name, host=net.hosts[name]).process.start()
        for name in NAMES:
            opened.clients[name].process.line(CONNECTED)
        yield opened


def cut_in_training(net: Network, apart: Federation, watched: Watched, number: int) -> None:
    """Cuts `bank` off while it trains a round, and waits until it has trained."""
    bank = apart.clients[BANK].process
    before = bank.position
    bank.line(f'"kind": "round-started", "round": {number}', after=before)
    [executor] = bank.workers()
    executor.suspend()
    net.cut(BANK)
    finished = f'"kind": "round-finished", "round": {number}'
    assert not any(finished in line for line in bank.lines[before:]), "the cut came too late"
    executor.resume()
    bank.line(finished, after=before)


def test_only_two_ports_of_the_server_can_be_reached(net: Network, apart: Federation) -> None:
    host = net.hosts[BANK]
    command = [*host.prefix, sys.executable, "-c", SCAN, apart.server_host.address]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.split() == [str(PORT), str(FLEET_PORT)]
    # Another one is open there, and for the machine itself alone.
    assert '"metrics_port": ' in apart.server.line('"metrics_port": ')


def test_a_client_that_is_cut_off_until_the_deadline_is_late(
    net: Network, apart: Federation
) -> None:
    """The round goes on without it, what it may have released is counted, and it comes back."""
    watched = apart.submit(apart.config(quorum=2, round_deadline_s=20, local_steps=LONG_ROUND))
    cut_in_training(net, apart, watched, 2)
    watched.event(events.ROUND_FINISHED, round=2)
    net.mend(BANK)
    run = watched.finished()
    second = run.rounds[1]
    assert (set(second.cohort), dict(second.missing)) == ({"clinic", "shop"}, {BANK: "late"})
    check_charges(apart, watched, run)
    bank = apart.clients[BANK]
    asked = [r.round for r in run.rounds if BANK in r.cohort or r.round == 2]
    assert num_charges(bank, run.run.run_id) == len(asked)
    newest = apart.operator.get_adapter(run.run.run_id)
    assert newest.epsilon[BANK] >= bank.spent() > 0, "what the server did not see was paid for"

    again = apart.submit(apart.config(num_rounds=1)).finished()  # it begins when all have agreed
    assert set(again.rounds[0].cohort) == set(NAMES)


def test_a_client_that_is_back_before_the_deadline_is_in_the_round(
    net: Network, apart: Federation
) -> None:
    """Its update was made and paid for while nobody could have it; it comes when it can."""
    watched = apart.submit(apart.config(local_steps=LONG_ROUND))
    cut_in_training(net, apart, watched, 2)
    waiting = [e for e in watched.events if e.kind == events.ROUND_FINISHED and e.round == 2]
    assert not waiting
    net.mend(BANK)
    run = watched.finished()
    assert [set(r.cohort) for r in run.rounds] == [set(NAMES)] * 3
    assert not run.rounds[1].missing
    check_charges(apart, watched, run)
    assert num_charges(apart.clients[BANK], run.run.run_id) == 3
