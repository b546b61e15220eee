"""Locks between processes, which end with the process that holds them, however it ends."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOOK_S = 0.05


@contextmanager
def locked(path: Path, *, patience_s: float) -> Iterator[None]:
    """Holds the lock of a file while the context is open; makes the file where there is none.

    Args:
        path: The file; only its owner can read it.
        patience_s: How long to wait for another holder. One that was killed a moment ago may still
            be about to end.

    Raises:
        BlockingIOError: If another process, or this one at another place, holds it.
    """
    deadline = time.monotonic() + patience_s
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        while not _try(file, fcntl.LOCK_EX):
            if time.monotonic() >= deadline:
                raise BlockingIOError(f"another process holds the lock of {path}")
            time.sleep(_LOOK_S)
        yield
    finally:
        os.close(file)


def is_locked(path: Path) -> bool:
    """Returns whether some process holds the lock of a file."""
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return not _try(file, fcntl.LOCK_SH)
    finally:
        os.close(file)


def _try(file: int, how: int) -> bool:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
