"""Durable, atomic writing: a reader sees the old file or the new one, also after a crash."""

import os
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a temporary file beside `path`, syncs it, and puts it in place."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        write(temporary)
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def write_private_text(path: Path, text: str) -> None:
    """Writes UTF-8 text that its owner alone can read, atomically."""

    def write(temporary: Path) -> None:
        temporary.touch(mode=0o600)
        temporary.write_text(text, encoding="utf-8")

    write_atomically(path, write)


def make_private_folder(path: Path) -> None:
    """Makes a folder that its owner alone can read, durably, and those above it where needed."""
    if not path.is_dir():
        make_private_folder(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
        sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def sync(path: Path) -> None:
    """Puts a file's content, or a folder's list of names, on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
