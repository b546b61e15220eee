"""A program that answers every line that it is told with a line of its own."""

import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

import psutil  # type: ignore[import-untyped]

from fedpeft.bench.process import end_of, environment, kill_tree
from fedpeft.errors import VerificationError


class Dialogue:
    """A running program; what it started ends with it."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        """Starts the program; what it writes to standard error goes to `log`."""
        self._command, self._log = command, log
        with log.open("wb") as errors:
            self._process = psutil.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment(),
                text=True,
                bufsize=1,
            )

    def tell(self, line: str) -> None:
        """Sends a line.

        Raises:
            VerificationError: If the program has ended.
        """
        try:
            self._process.stdin.write(f"{line}\n")
        except OSError as error:
            raise self._failure("ended") from error

    def hear(self, within_s: float) -> str:
        """Returns the next line of the program, without its end.

        Raises:
            VerificationError: If it ended, or was ended because it said nothing for so long.
        """
        timer = threading.Timer(within_s, kill_tree, [self._process])
        timer.start()
        line: str = self._process.stdout.readline()
        timer.cancel()
        timer.join()  # where it went off, it still waits for the program's end
        if not line:
            raise self._failure(f"ended, or said nothing for {within_s:g} s")
        return line.rstrip("\n")

    def finish(self, within_s: float) -> None:
        """Waits for the end.

        Raises:
            VerificationError: If it fails, or does not come in time.
        """
        try:
            code = self._process.wait(within_s)
        except psutil.TimeoutExpired as error:
            raise self._failure(f"did not end within {within_s:g} s") from error
        if code != 0:
            raise self._failure(f"ended with code {code}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.is_running():
            kill_tree(self._process)
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(OSError):  # what was not taken yet is told to nobody
                stream.close()

    def _failure(self, what: str) -> VerificationError:
        return VerificationError(
            f"{' '.join(self._command)} {what}; the end of {self._log}:\n{end_of(self._log)}"
        )
