"""An adapter's files from a stream of chunks into a new folder: all of them and sound, or none."""

import hashlib
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from fedpeft.errors import InputError, ProtocolError, VerificationError
from fedpeft.wire.v1 import adapters_pb2

_MOST_FILES = 64
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


@dataclass(kw_only=True)
class _File:
    """A file that is being written."""

    name: str
    size_bytes: int
    sha256: str
    opened: IO[bytes]
    received: int = 0
    sha: Any = field(default_factory=hashlib.sha256)


def save_files(chunks: Iterable[adapters_pb2.AdapterChunk], folder: Path) -> list[str]:
    """Writes the files of an export.

    Names come from the server and are not trusted: only plain ones are taken.

    Args:
        chunks: The files, one after the other.
        folder: New, or empty.

    Returns:
        The files' names.

    Raises:
        InputError: If the folder holds something already, or cannot be written.
        ProtocolError: If a name could leave the folder, or the stream is no sequence of files.
        VerificationError: If a file is not what was announced. Nothing is left behind then.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} already holds something; name a new or empty folder")
    names: list[str] = []
    with _scratch_beside(folder) as scratch, ExitStack() as opened:
        current: _File | None = None
        for chunk in chunks:
            with _writing(folder):
                if chunk.name:
                    _finish(current)
                    current = _begin(chunk, scratch, names)
                    opened.enter_context(current.opened)
                    names.append(chunk.name)
                if current is None:
                    raise ProtocolError("the server sent bytes of no file")
                _append(current, chunk.content)
        if not names:
            raise ProtocolError("the server sent no file")
        with _writing(folder):
            _finish(current)
            if folder.exists():
                folder.rmdir()
            scratch.chmod(0o755)
            scratch.rename(folder)
    return names


@contextmanager
def _scratch_beside(folder: Path) -> Iterator[Path]:
    """A folder on the same file system, gone at the end unless it was moved into place."""
    with _writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror})") from error


def _begin(chunk: adapters_pb2.AdapterChunk, scratch: Path, names: list[str]) -> _File:
    if _NAME.fullmatch(chunk.name) is None or chunk.name in names:
        raise ProtocolError(f"the server sent a file under the name {chunk.name[:100]!r}")
    if len(names) == _MOST_FILES:
        raise ProtocolError(f"the server sent more than {_MOST_FILES} files")
    return _File(
        name=chunk.name,
        size_bytes=chunk.size_bytes,
        sha256=chunk.sha256,
        opened=(scratch / chunk.name).open("xb"),
    )


def _append(file: _File, content: bytes) -> None:
    file.received += len(content)
    if file.received > file.size_bytes:
        raise VerificationError(f"{file.name} is longer than the {file.size_bytes} bytes announced")
    file.sha.update(content)
    file.opened.write(content)


def _finish(file: _File | None) -> None:
    if file is None:
        return
    file.opened.close()
    if file.received != file.size_bytes or file.sha.hexdigest() != file.sha256:
        raise VerificationError(
            f"{file.name} is not what was announced: {file.received} bytes of {file.size_bytes}, "
            "or another sha256; download it again"
        )
