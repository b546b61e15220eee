"""Python processes that tests start, talk to line by line, and kill."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def running(module: str, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """Runs a module of the tests until the block ends."""
    with subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def write(process: "subprocess.Popen[str]", line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def nurse() -> Iterator[None]:
    """Forks a child for each line on stdin; the caller's loop body is the child, to be killed.

    It spares the children the start of an interpreter.
    """
    print("ready", flush=True)
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            yield
            os._exit(0)
        print(child, flush=True)
        os.waitpid(child, 0)
        print("dead", flush=True)


def say(line: str) -> None:
    """One write, so that the lines of a child and of its parent do not mix."""
    os.write(sys.stdout.fileno(), line.encode() + b"\n")


def kill_a_child(
    nursery: "subprocess.Popen[str]", dice: random.Random, *, most_lines: int, within_s: float
) -> list[str]:
    """Has a child made, kills it at a moment chosen at random, and returns the lines it wrote."""
    write(nursery, "go")
    lines: list[str] = []
    child: int | None = None
    # The child's lines and its number, which its parent prints, come in any order.
    target = dice.randint(1, most_lines)
    while child is None or len(lines) < target:
        line = read(nursery)
        assert line not in ("", "dead"), "the worker ended by itself"
        if line.isdigit():
            child = int(line)
        else:
            lines.append(line)
    # A moment within the next steps; nothing waits for it.
    until = time.perf_counter() + dice.random() * within_s
    while time.perf_counter() < until:
        pass
    os.kill(child, signal.SIGKILL)
    while (line := read(nursery)) != "dead":
        lines.append(line)
    return lines
