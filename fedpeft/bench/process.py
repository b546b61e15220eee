"""A program from its start to its end: wall-clock seconds and the memory of all its processes."""

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from fedpeft.errors import VerificationError

_SAMPLE_EVERY_S = 0.5
# Reading the memory of a process stops it for a moment: one part in 50 of a core, at most.
_MAX_SHARE = 1 / 50
# Every arm decides on its own threads.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_TAIL_LINES = 15


@dataclass(frozen=True, kw_only=True)
class ProcessCost:
    """What a program took.

    Attributes:
        seconds: From its start until it had ended.
        peak_bytes: The most its processes held together, sampled; a page that several of them
            share counts once (proportional set size).
    """

    seconds: float
    peak_bytes: int


def run_program(command: Sequence[str], log: Path) -> ProcessCost:
    """Runs a program to its end, its output in `log`; what it started ends with it.

    Raises:
        VerificationError: If it failed; the message has the end of the log.
    """
    peak = 0
    with log.open("wb") as output:
        started = time.monotonic()
        process = psutil.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment(), close_fds=True
        )
        try:
            pause = _SAMPLE_EVERY_S
            while True:
                try:
                    process.wait(pause)
                    break
                except psutil.TimeoutExpired:
                    sampled = time.monotonic()
                    peak = max(peak, _tree_bytes(process))
                    pause = max(_SAMPLE_EVERY_S, (time.monotonic() - sampled) / _MAX_SHARE)
            seconds = time.monotonic() - started
        finally:
            if process.is_running():
                kill_tree(process)
    if process.returncode != 0:
        raise VerificationError(
            f"{' '.join(command)} ended with code {process.returncode}; the end of {log}:\n"
            + end_of(log)
        )
    return ProcessCost(seconds=seconds, peak_bytes=peak)


def environment() -> dict[str, str]:
    """Returns what a program finds: no limit of ours on its threads, and no network."""
    kept = {n: v for n, v in os.environ.items() if n not in _THREAD_VARIABLES}
    return kept | {"HF_HUB_OFFLINE": "1"}


def end_of(log: Path) -> str:
    """Returns its last lines."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(lines[-_TAIL_LINES:])


def kill_tree(process: psutil.Process) -> None:
    """Kills a process and all that it started, and waits for it."""
    for member in _tree(process):
        try:
            member.kill()
        except psutil.Error:
            continue
    process.wait()


def _tree_bytes(process: psutil.Process) -> int:
    total = 0
    for member in _tree(process):
        try:
            memory = member.memory_full_info()
        except psutil.Error:  # it ended meanwhile
            continue
        total += getattr(memory, "pss", memory.uss)
    return total


def _tree(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []
