"""One program of a federation: started, waited for by what it says, killed, started again."""

import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

LONG_S = 300.0
_SHOWN_LINES = 60
# Whoever kills the tests kills what they started.
_DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL", "--") if shutil.which("setpriv") else ()


class Process:
    """A program and all that it ever said, on standard output or error, over its restarts."""

    def __init__(
        self, name: str, command: Sequence[str], *, log: Path, environment: Mapping[str, str]
    ) -> None:
        """Starts nothing yet; `log` gets every line."""
        self.name = name
        self.log = log
        self._command = (*_DIES_WITH_US, *command)
        self._environment = dict(environment)
        self._said = threading.Condition()
        self._lines: list[str] = []
        self._num_open = 0
        self._popen: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        assert self._popen is not None, f"{self.name} was never started"
        return self._popen.pid

    @property
    def is_running(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    @property
    def position(self) -> int:
        """How many lines were said; see `line`."""
        with self._said:
            return len(self._lines)

    @property
    def lines(self) -> list[str]:
        """All lines until now."""
        with self._said:
            return list(self._lines)

    def start(self) -> None:
        assert not self.is_running, f"{self.name} is running"
        popen = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=self._environment,
        )
        with self._said:
            self._popen, self._num_open = popen, self._num_open + 1
        threading.Thread(target=self._listen, args=(popen,), daemon=True).start()

    def line(self, pattern: str, *, after: int = 0, timeout_s: float = LONG_S) -> str:
        """Waits for a line that holds the pattern, among those after a position."""
        until = time.monotonic() + timeout_s
        with self._said:
            while True:
                for line in self._lines[after:]:
                    if re.search(pattern, line):
                        return line
                after = len(self._lines)
                assert self._num_open, f"{self.name} ended before it said {pattern!r}\n{self.tail}"
                left_s = until - time.monotonic()
                assert left_s > 0, f"{self.name} did not say {pattern!r}\n{self.tail}"
                self._said.wait(left_s)

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Ends it as a power cut would."""
        if self._popen is not None and self._popen.returncode is None:
            self._popen.kill()
            self._popen.wait()

    def stop(self) -> int:
        """Asks it to end; returns its exit code."""
        self.signal(signal.SIGTERM)
        return self.ended()

    def ended(self, timeout_s: float = LONG_S) -> int:
        """Waits until it has ended; returns its exit code."""
        assert self._popen is not None
        try:
            return self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} does not end\n{self.tail}") from None

    def workers(self) -> list[psutil.Process]:
        """The processes that it started to compute in."""
        try:
            children = psutil.Process(self.pid).children()
            return [c for c in children if "--multiprocessing-fork" in c.cmdline()]
        except psutil.Error:  # one of them ended meanwhile
            return []

    def rss_bytes(self) -> int:
        """Memory that it holds now, without its workers."""
        return int(psutil.Process(self.pid).memory_info().rss)

    @property
    def tail(self) -> str:
        """The end of what it said, for the message of a test that failed."""
        shown = "\n".join(f"  | {line}" for line in self._lines[-_SHOWN_LINES:])
        return f"{self.name} said last ({self.log}):\n{shown}"

    def _listen(self, popen: "subprocess.Popen[str]") -> None:
        assert popen.stdout is not None
        with self.log.open("a", encoding="utf-8") as log, popen.stdout:
            for line in popen.stdout:
                log.write(line)
                log.flush()
                with self._said:
                    self._lines.append(line.rstrip("\n"))
                    self._said.notify_all()
        with self._said:
            self._num_open -= 1
            self._said.notify_all()
