"""`fedpeft server start` as a process of its own, with the real engine and fleet."""

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedpeft.errors import FedpeftError, UnavailableError
from fedpeft.identity.roles import Role
from fedpeft.remote import Connection
from fedpeft.remote.records import RunStatus
from tests.server.holders import LOCAL, Holders
from tests.server.nodes import node_key
from tests.server.runs import config

pytestmark = pytest.mark.slow

FEDPEFT = [sys.executable, "-c", "from fedpeft.cli.main import run; run()"]
TOML = """
[listen]
host = "127.0.0.1"
port = 0
fleet_host = "127.0.0.1"
fleet_port = 0
metrics_port = 0
"""


@dataclass(frozen=True, kw_only=True)
class Server:
    """A process that listens."""

    process: "subprocess.Popen[str]"
    ports: dict[str, int]
    holders: Holders

    def connect(self, name: str, **settings: float) -> Connection:
        address = f"localhost:{self.ports['port']}"
        return Connection.open(address, self.holders.folder / name, **settings)


@pytest.fixture
def holders(tmp_path: Path) -> Holders:
    found = Holders(tmp_path)
    found.issue("operator", Role.OPERATOR)
    found.issue("clinic", Role.DATA_OWNER)
    folder = found.issue("coordinator", Role.SERVER, hosts=LOCAL, at="server/identity")
    (folder / "revoked.crl.pem").write_bytes(found.revocations.read_bytes())
    (tmp_path / "server" / "server.toml").write_text(TOML)
    return found


def start(holders: Holders, log: Path) -> "subprocess.Popen[str]":
    toml = holders.folder / "server" / "server.toml"
    with log.open("a") as errors:
        return subprocess.Popen(
            [*FEDPEFT, "server", "start", "--config", str(toml), "--json"],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )


@contextmanager
def running(holders: Holders) -> Iterator[Server]:
    """A server until the block ends."""
    log = holders.folder / "log.jsonl"
    with start(holders, log) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, log.read_text()
            yield Server(process=process, ports=json.loads(line), holders=holders)
        finally:
            process.kill()


def logged(holders: Holders) -> list[str]:
    lines = (holders.folder / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["event"] for line in lines if line.startswith("{")]


def test_a_server_from_start_to_sigterm_with_a_watcher_open(holders: Holders) -> None:
    with running(holders) as server, server.connect("operator", patience_s=0.0) as operator:
        info = operator.get_server()
        assert info.fleet_address == f"localhost:{server.ports['fleet_port']}"
        url = f"http://127.0.0.1:{server.ports['metrics_port']}/ready"
        with urllib.request.urlopen(url, timeout=20) as answer:
            assert answer.read() == b"ready\n"
        # Nobody is enrolled, so that the run waits.
        run_id = operator.submit_run(config(federation={"num_clients": 3})).run_id
        ended: list[FedpeftError] = []
        seen = threading.Event()

        def watch() -> None:
            try:
                for _ in operator.watch_run(run_id):
                    seen.set()
            except FedpeftError as error:
                ended.append(error)

        watcher = threading.Thread(target=watch)
        watcher.start()
        assert seen.wait(60)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
        watcher.join(20)
        assert isinstance(ended[0], UnavailableError)
        assert "the server is stopping" in str(ended[0])
    assert logged(holders)[-1] == "stopped"


def test_after_a_kill_everything_is_there_and_the_run_goes_on(holders: Holders) -> None:
    key = node_key()
    with running(holders) as server, server.connect("operator") as operator:
        run_id = operator.submit_run(config(federation={"num_clients": 3})).run_id
        token = operator.invite_client("clinic").token
        with server.connect("clinic") as clinic:
            clinic.enrol_client(key, token=token, version="0.1.0")
        head = [entry.hash for entry in operator.audit()]
        server.process.kill()
        server.process.wait(20)
    with running(holders) as server, server.connect("operator") as operator:
        assert operator.get_run(run_id).run.status in (RunStatus.SUBMITTED, RunStatus.PREPARING)
        assert [client.client_id for client in operator.list_clients()] == ["clinic"]
        with server.connect("clinic") as clinic:
            clinic.enrol_client(key, token="", version="0.1.0")
        assert [entry.hash for entry in operator.audit()][: len(head)] == head
        assert operator.stop_run(run_id).status is RunStatus.STOPPED


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "identity/key.pem").unlink(), "expected a private key at"),
        (lambda folder: (folder / "identity/key.pem").chmod(0o644), "others can read"),
        (lambda folder: (folder / "identity/revoked.crl.pem").unlink(), "a revocation list in PEM"),
        (lambda folder: (folder / "server.toml").write_text("[x]"), "x does not exist"),
        (lambda folder: (folder / "server.toml").unlink(), "there is no configuration file"),
    ],
)
def test_a_server_that_cannot_start_says_why(
    holders: Holders, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(holders.folder / "server")
    log = holders.folder / "log.jsonl"
    with start(holders, log) as process:
        assert process.wait(60) == 2
    last = log.read_text().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert not (holders.folder / "server" / "state" / "server.db").exists()


def test_a_second_server_on_the_same_folder_is_refused(holders: Holders) -> None:
    with running(holders):
        with start(holders, holders.folder / "second.jsonl") as second:
            assert second.wait(60) == 2
        assert "another server is running on" in (holders.folder / "second.jsonl").read_text()
