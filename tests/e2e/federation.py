"""A federation of real processes over real TLS, for tests that kill, cut off and attack its parts.

An authority, `fedpeft server start`, one `fedpeft client join` for each client with a state folder
and rows of its own, and an operator who calls through the SDK.
"""

import os
import random
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from fedpeft.identity.roles import Role
from fedpeft.ledger import Ledger
from fedpeft.remote import Connection
from fedpeft.remote.records import RunDetails, RunEvent, RunStatus
from tests.e2e.process import LONG_S, Process
from tests.server.holders import Holders
from tests.tiny_models import write_rows

ROOT = Path(__file__).parents[2]
OPERATOR = "operator"
NAMES = ("bank", "clinic", "shop")
DELTA = 0.02
PRIVATE = {"target_epsilon": 4.0, "delta": DELTA}
OFF = {"enabled": False}


@dataclass(frozen=True, kw_only=True)
class Host:
    """A machine: what it is called by, and what a command is put behind to run on it."""

    address: str = "127.0.0.1"
    prefix: tuple[str, ...] = ()


@dataclass(kw_only=True)
class Member:
    """A client: its process and its folder."""

    name: str
    process: Process
    folder: Path

    @property
    def ledger(self) -> Path:
        return self.folder / "state" / "ledger.db"

    def spent(self) -> float:
        """What its own ledger says."""
        with Ledger.open(self.ledger, read_only=True) as ledger:
            [balance] = ledger.balances()
        assert balance.spent is not None
        return balance.spent


@dataclass(kw_only=True)
class Federation:
    """Everything of one; see `federation`.

    Attributes:
        folder: Of all of it.
        model: Folder of the base model.
        source: Folder of the code that its processes run.
    """

    folder: Path
    model: Path
    holders: Holders
    server: Process
    server_host: Host
    port: int
    fleet_port: int
    operator: Connection
    source: Path
    clients: dict[str, Member] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"{self.server_host.address}:{self.port}"

    @property
    def fleet_address(self) -> str:
        return f"{self.server_host.address}:{self.fleet_port}"

    @property
    def database(self) -> Path:
        return self.folder / "state" / "server.db"

    def processes(self) -> list[Process]:
        return [self.server, *(client.process for client in self.clients.values())]

    # --- the server

    def start_server(self) -> None:
        """Starts it, and returns when it listens."""
        before = self.server.position
        self.server.start()
        self.server.line(r'"fleet_port":', after=before)

    def restart_server(self) -> None:
        """Kills it and starts it again, as systemd would."""
        self.server.kill()
        self.server.start()

    # --- clients

    def add_client(
        self,
        name: str,
        *,
        num_rows: int = 12,
        budget: float = 1000.0,
        policy: str = "allow_without_privacy = true\n",
        host: Host | None = None,
        source: Path | None = None,
    ) -> Member:
        """Makes keys, rows and a folder with a policy, and an invitation; starts nothing."""
        folder = self.holders.issue(name, Role.DATA_OWNER)
        rows = write_rows(folder / "rows.jsonl", num_rows, seed=len(self.clients) + 1)
        self.make_state(folder / "state", policy)
        token = self.operator.invite_client(name).token
        command = [
            *("client", "join", self.address, "--identity", str(folder), "--token", token),
            *("--state", str(folder / "state"), "--data", str(rows)),
            *("--budget", f"{budget}:{DELTA}", "--threads", "1", "--json"),
        ]
        member = Member(
            name=name,
            process=program(
                name,
                command,
                folder=self.folder,
                host=host or Host(),
                source=source or self.source,
            ),
            folder=folder,
        )
        self.clients[name] = member
        return member

    def make_state(self, folder: Path, policy: str) -> None:
        """What `fedpeft client init` and --allow-model make, without the seconds that torch takes.

        `tests/e2e/test_example.py` has the command itself.
        """
        from fedpeft_client.state_folder import StateFolder
        from tests.federated.client_rounds import base_digest

        digest = base_digest(self.model)
        StateFolder.create(
            folder, f'{policy}device = "cpu"\n[base_models.{digest}]\nname = "{self.model}"\n'
        )

    def join(self, *names: str, num_rows: Sequence[int] = (9, 12, 15)) -> None:
        """Adds clients, starts them all, and waits until all are connected."""
        for name, count in zip(names, num_rows, strict=False):
            self.add_client(name, num_rows=count).process.start()
        for name in names:
            self.clients[name].process.line(CONNECTED)

    # --- runs

    def config(self, privacy: Mapping[str, Any] = PRIVATE, **federation: Any) -> dict[str, Any]:
        """Three rounds of three clients, all of whom must be in each, unless told otherwise."""
        rounds = {"clients": "remote", "num_clients": 3, "num_rounds": 3, "local_steps": 2}
        rounds |= {"quorum": 3, "round_deadline_s": 600, "learning_rate": 0.5}
        batches = {} if "sampling_prob" in federation else {"expected_batch_size": 5}
        return {
            "model": {
                "name": str(self.model),
                "task": "classification",
                "max_length": 24,
                "max_tokens_per_batch": 512,
                "device": "cpu",
            },
            "data": {"test": "held_out.jsonl"},
            "adapter": {"rank": 4, "target_modules": ["query", "value"]},
            "federation": {**rounds, **batches, **federation},
            "privacy": dict(privacy),
        }

    def submit(self, config: Mapping[str, Any]) -> "Watched":
        """Submits a run and follows it."""
        run = self.operator.submit_run(config, held_out=self.folder / "held_out.jsonl")
        return Watched(self.operator, run.run_id, self.report)

    # --- the end

    def stop(self) -> None:
        """Kills whatever runs; nothing of a test outlives it."""
        for process in self.processes():
            process.kill()
        self.operator.close()

    def report(self) -> str:
        """What every process said last."""
        return "\n\n".join(process.tail for process in self.processes())


class Watched:
    """A run, and what it told until now: a thread reads the stream, over restarts of the server."""

    def __init__(self, operator: Connection, run_id: str, report: Callable[[], str]) -> None:
        """Takes who can ask for it, and what else there is to say where it did not go well."""
        self.run_id = run_id
        self.error: Exception | None = None
        self._operator, self._report = operator, report
        self._told = threading.Condition()
        self._events: list[RunEvent] = []
        self._is_over = False
        threading.Thread(target=self._watch, daemon=True).start()

    @property
    def events(self) -> list[RunEvent]:
        with self._told:
            return list(self._events)

    def event(self, kind: str, timeout_s: float = LONG_S, **wanted: Any) -> RunEvent:
        """Waits for an event of a kind with these attributes: `round`, `client_id`."""

        def found() -> RunEvent | None:
            matching = (e for e in self._events if e.kind == kind)
            return next(
                (e for e in matching if all(getattr(e, k) == v for k, v in wanted.items())), None
            )

        with self._told:
            self._told.wait_for(lambda: found() or self._is_over, timeout_s)
            event = found()
        assert event is not None, f"no event {kind} {wanted} among\n{self.story()}"
        return event

    def wait(self, seconds: float) -> bool:
        """Lets so much time pass, less if the run ends; returns whether it has ended."""
        with self._told:
            return self._told.wait_for(lambda: self._is_over, seconds)

    def finished(self, timeout_s: float = 2 * LONG_S) -> RunDetails:
        """Waits for the end, which must be a good one."""
        ended = self.ended(timeout_s)
        assert ended.run.status is RunStatus.FINISHED, f"{ended.run}\n{self.story()}"
        return ended

    def ended(self, timeout_s: float = 2 * LONG_S) -> RunDetails:
        assert self.wait(timeout_s), f"run {self.run_id} does not end\n{self.story()}"
        if self.error is not None:
            raise self.error
        return self._operator.get_run(self.run_id)

    def story(self) -> str:
        """What happened, for the message of a test that failed."""
        lines = [
            f"  {e.at:%H:%M:%S.%f} {e.kind} {e.round or ''} {e.client_id or ''} {dict(e.body)}"
            for e in self._events
        ]
        return "\n".join([*lines, "", self._report()])

    def _watch(self) -> None:
        try:
            for event in self._operator.watch_run(self.run_id):
                with self._told:
                    self._events.append(event)
                    self._told.notify_all()
        except Exception as error:  # for the test, which is another thread
            self.error = error
        with self._told:
            self._is_over = True
            self._told.notify_all()


CONNECTED = r'"kind": "connected"'


def program(
    name: str, arguments: Sequence[str], *, folder: Path, host: Host, source: Path
) -> Process:
    """A `fedpeft` command that can be started."""
    paths = os.pathsep.join(str(source / part) for part in ("", "server", "client"))
    environment = {
        **os.environ,
        "PYTHONPATH": paths,
        "PYTHONSAFEPATH": "1",  # not what lies where the tests are started
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    start = "from fedpeft.cli.main import run; run()"
    return Process(
        name,
        [*host.prefix, sys.executable, "-c", start, *arguments],
        log=folder / f"{name}.log",
        environment=environment,
    )


@contextmanager
def federation(
    folder: Path,
    model: Path,
    *,
    host: Host | None = None,
    source: Path = ROOT,
    database: str = "",
    ports: tuple[int, int] | None = None,
) -> Iterator[Federation]:
    """A server that listens and an operator; all processes are gone when the block ends.

    Args:
        folder: For all files.
        model: Folder of the base model.
        host: Where the server runs.
        source: Folder of the code to run.
        database: URL; empty: SQLite.
        ports: Of control plane and fleet; None: free ones.
    """
    host = host or Host()
    port, fleet_port = ports or free_ports()
    holders = Holders(folder)
    identity = holders.issue("coordinator", Role.SERVER, hosts=[host.address])
    holders.issue(OPERATOR, Role.OPERATOR)
    write_rows(folder / "held_out.jsonl", 16, seed=99)
    config = {
        "listen": {
            **{"host": host.address, "port": port, "metrics_port": 0},
            **{"fleet_host": host.address, "fleet_port": fleet_port},
        },
        "storage": {"folder": str(folder / "state"), "database": database},
        "identity": {
            "key": str(identity / "key.pem"),
            "certificate": str(identity / "cert.pem"),
            "authority": str(identity / "authority.cert.pem"),
            "revocations": str(holders.revocations),
        },
        "runs": {"folders": [str(model.parent)]},
    }
    (folder / "server.toml").write_text(tomli_w.dumps(config))
    start = ["server", "start", "--config", str(folder / "server.toml"), "--json"]
    # Patience for as long as a server may take to be back.
    operator = Connection.open(
        f"{host.address}:{port}", folder / OPERATOR, patience_s=LONG_S, timeout_s=LONG_S
    )
    made = Federation(
        folder=folder,
        model=model,
        holders=holders,
        server=program("server", start, folder=folder, host=host, source=source),
        server_host=host,
        port=port,
        fleet_port=fleet_port,
        operator=operator,
        source=source,
    )
    try:
        made.start_server()
        yield made
    except BaseException:
        print(made.report())
        raise
    finally:
        made.stop()


def free_ports() -> tuple[int, int]:
    """Two ports that nobody listens on, and that no outgoing connection is given meanwhile."""
    found: list[int] = []
    while len(found) < 2:
        port = random.randint(20_000, 32_000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0 and port not in found:
                found.append(port)
    return found[0], found[1]
