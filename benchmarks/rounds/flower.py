"""Flower 1.41 as its documentation starts it: a SuperLink with TLS, SuperNodes, `flwr run`.

    python benchmarks/rounds/flower.py JOB.json RESULT.json

Both isolate their apps in subprocesses, which is the default: every message starts a Python process
that answers it. The app in `flower_app` trains nothing and imports nothing but Flower.
"""

import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path

import tomli_w
from counter import Counter
from job import (
    Place,
    ended,
    free_port,
    mean_step,
    read_job,
    ready,
    running,
    step_of,
    write_result,
)

from fedpeft.bench.round_job import RoundResult

_SLOWEST_START_S = 120.0
_BIN = Path(sys.executable).parent
_APP = Path(__file__).parent / "flower_app"


def main() -> None:
    job, path = read_job(sys.argv)
    with ExitStack() as stack:
        place = Place(stack)
        environment = os.environ | {
            "PATH": f"{_BIN}{os.pathsep}{os.environ.get('PATH', '')}",
            "FLWR_HOME": str(place.folder),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        }

        def start(name: str, *arguments: str) -> None:
            stack.enter_context(running([str(_BIN / name), *arguments], environment))

        port = free_port()
        start(
            "flower-superlink",
            *("--host", "127.0.0.1", "--port", str(port)),
            *("--ssl-ca-certfile", str(place.authority)),
            *("--ssl-certfile", str(place.certificate), "--ssl-keyfile", str(place.key)),
        )
        _wait_for(port)
        counter = stack.enter_context(Counter(port)) if job.count_bytes else None
        for number in range(job.num_clients):
            start(
                "flower-supernode",
                *("--node-config", f"step={step_of(number)}"),
                *("--superlink", f"127.0.0.1:{counter.port if counter else port}"),
                *("--root-certificates", str(place.authority), "--port", str(free_port())),
            )
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        config = {
            "job": str(Path(sys.argv[1]).resolve()),
            "rounds": f"127.0.0.1:{listening.getsockname()[1]}",
            "step": repr(mean_step(job.num_clients)),
        }
        _submit(place, port, environment, config)
        write_result(
            path,
            RoundResult(
                error=_take_through(listening, job.num_rounds),
                wire_bytes=counter.num_bytes if counter else None,
                stack={"flwr": metadata.version("flwr")},
            ),
        )


def _submit(place: Place, port: int, environment: dict[str, str], config: dict[str, str]) -> None:
    """Starts the run as a user does."""
    connection = {"address": f"127.0.0.1:{port}", "root-certificates": str(place.authority)}
    known = {"superlink": {"default": "here", "here": connection}}
    (place.folder / "config.toml").write_text(tomli_w.dumps(known), encoding="utf-8")
    overrides = " ".join(f'{name}="{value}"' for name, value in config.items())
    command = [str(_BIN / "flwr"), "run", str(_APP), "here", "--run-config", overrides]
    subprocess.run(command, env=environment, check=True, stdout=sys.stderr)


def _wait_for(port: int) -> None:
    """Waits until somebody listens."""
    until = time.monotonic() + _SLOWEST_START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)
        else:
            return


def _take_through(listening: socket.socket, num_rounds: int) -> float:
    """Lets the server's app begin each round when it may; returns the error that it found."""
    connection, _ = listening.accept()
    with connection, connection.makefile("rw", encoding="ascii", buffering=1) as app:
        app.readline()
        ready()
        for number in range(1, num_rounds + 1):
            app.write("go\n")
            ended(float(app.readline()), is_last=number == num_rounds)
        return float(app.readline())


if __name__ == "__main__":
    main()
