"""What both arms are given and give back, and what both need: certificates, ports, processes."""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil

from fedpeft.bench.round_job import RoundJob, RoundResult
from fedpeft.identity.authority import CERTIFICATE, REVOKED, Authority
from fedpeft.identity.keys import new_key, write_request
from fedpeft.identity.roles import Role

BASE_DIGEST = "0" * 64
"""Of the base model that there is not."""
_STEP = 0.01


def step_of(number: int) -> float:
    """What a client adds to every value of B: no two updates are the same bytes."""
    return _STEP * (1 + number)


def mean_step(num_clients: int) -> float:
    """What their mean adds."""
    return sum(map(step_of, range(num_clients))) / num_clients


def read_job(arguments: Sequence[str]) -> tuple[RoundJob, Path]:
    """Returns the job, and where its result goes."""
    _, job, result = arguments
    return RoundJob.model_validate_json(Path(job).read_bytes()), Path(result)


def write_result(path: Path, result: RoundResult) -> None:
    path.write_text(result.model_dump_json(indent=2) + "\n", encoding="utf-8")


def ready() -> None:
    """Says that the first round can begin, and waits until it may."""
    _say("ready")
    _wait()


def ended(seconds: float, *, is_last: bool) -> None:
    """Says how long a round took, and waits until the next one may begin."""
    _say(repr(seconds))
    if not is_last:
        _wait()


def _say(line: str) -> None:
    print(line, flush=True)


def _wait() -> None:
    if not sys.stdin.readline():
        raise EOFError("nobody wants another round")


class Place:
    """A scratch folder with an authority, and a server's certificate for 127.0.0.1."""

    def __init__(self, stack: ExitStack) -> None:
        scratch = tempfile.TemporaryDirectory(prefix="fedpeft-rounds-", ignore_cleanup_errors=True)
        self.folder = Path(stack.enter_context(scratch))
        authority = self.folder / "authority"
        self._authority = Authority.create(authority, "authority of a benchmark")
        self.authority, self.revocations = authority / CERTIFICATE, authority / REVOKED
        self.server = self.issue("server", Role.SERVER)
        self.key, self.certificate = self.server / "key.pem", self.server / "cert.pem"

    def issue(self, name: str, role: Role) -> Path:
        """Makes the folder of a holder: key, certificate, and the authority's certificate."""
        folder = self.folder / name
        folder.mkdir()
        request, certificate = folder / "request.pem", folder / "cert.pem"
        write_request(new_key(folder / "key.pem"), name, request)
        hosts = ["127.0.0.1"] if role is Role.SERVER else []
        self._authority.issue(request, [role], certificate, days=2, hosts=hosts)
        (folder / "authority.cert.pem").write_bytes(self.authority.read_bytes())
        return folder


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


@contextmanager
def running(
    command: Sequence[str], environment: Mapping[str, str] | None = None
) -> Iterator[psutil.Popen]:
    """Runs a program until the context ends; what it started ends with it."""
    process = psutil.Popen(
        command, env=dict(environment or os.environ), stdin=subprocess.DEVNULL, stdout=sys.stderr
    )
    try:
        yield process
    finally:
        tree = [process]
        with suppress(psutil.NoSuchProcess):
            tree += process.children(recursive=True)
        for member in tree:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        process.wait()
