"""Machines on a network that breaks, as network namespaces: a client is cut off in a round."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedpeft_server import events
from tests.e2e.checks import check_charges, num_charges
from tests.e2e.crashes import LONG_ROUND
from tests.e2e.federation import CONNECTED, NAMES, Federation, Host, Watched, federation
from tests.e2e.network import Network, network

pytestmark = pytest.mark.e2e

PORT, FLEET_PORT = 7443, 7444
BANK = "bank"
# Which of the ports a machine can connect to, on another one.
CONNECT = """
import socket, sys

for port in sys.argv[2:]:
    with socket.socket() as tried:
        tried.settimeout(60)
        if tried.connect_ex((sys.argv[1], int(port))) == 0:
            print(port)
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


def on(host: Host, *command: str) -> list[str]:
    """What a command says on that machine, word by word."""
    return subprocess.run(
        [*host.prefix, *command], capture_output=True, text=True, check=True, timeout=300
    ).stdout.split()


def listening(host: Host) -> set[int]:
    """Every port that a machine listens on, for whomever."""
    words = on(host, "cat", "/proc/net/tcp", "/proc/net/tcp6")
    places = [words[i - 2] for i, word in enumerate(words) if word == "0A"]
    return {int(place.rpartition(":")[2], 16) for place in places if ":" in place}


def test_only_two_ports_of_the_server_can_be_reached(net: Network, apart: Federation) -> None:
    server = net.hosts["server"]
    ports = listening(server)
    assert {PORT, FLEET_PORT} < ports, "and one for monitoring"
    reached = on(
        net.hosts[BANK], sys.executable, "-c", CONNECT, server.address, *map(str, sorted(ports))
    )
    assert set(map(int, reached)) == {PORT, FLEET_PORT}


@pytest.mark.slow
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
