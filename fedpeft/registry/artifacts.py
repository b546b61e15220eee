"""Content under its sha256: what is put twice is there once, what was altered is not given out."""

import hashlib
import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from fedpeft.errors import ConfigError, InputError, UnavailableError, VerificationError
from fedpeft.files import make_private_folder, sync

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_PARTIAL: Final = ".partial"
# A put takes seconds: what is older was left by a process that was killed.
_LEFT_BEHIND_S: Final = 24 * 3600


class ArtifactStore:
    """A folder, or any place that fsspec reaches by URL. Threads and processes may share one.

    Each artifact is one file, named by its digest. It is written under another name first, so that
    a reader sees all of it or nothing.
    """

    def __init__(self, url: str | Path) -> None:
        """Opens the store, and makes its folder.

        Args:
            url: A folder's path, or a URL such as `s3://bucket/prefix`.

        Raises:
            ConfigError: If nothing here reads such URLs.
            UnavailableError: If the folder cannot be made.
        """
        from fsspec.core import url_to_fs
        from fsspec.implementations.local import LocalFileSystem

        try:
            self._files, root = url_to_fs(str(url))
        except (ImportError, ValueError) as error:
            raise ConfigError(
                f"expected a folder, or a URL that fsspec reads, for artifacts ({error})"
            ) from error
        self._root = str(root).rstrip("/")
        self._folder = Path(root) if isinstance(self._files, LocalFileSystem) else None
        with self._explained("opened"):
            if self._folder is None:
                self._files.makedirs(self._root, exist_ok=True)
            else:
                make_private_folder(self._folder)
                _sweep(self._folder)

    def put(self, content: bytes) -> str:
        """Stores content whole or not at all, in a local folder durably; returns its sha256, hex.

        Raises:
            UnavailableError: If it cannot be written, for example on a full disk.
        """
        digest = hashlib.sha256(content).hexdigest()
        if self._has_intact(digest):
            return digest
        name = f".{digest}.{uuid.uuid4().hex}{_PARTIAL}"
        with self._explained("written"):
            if self._folder is None:
                self._put_elsewhere(f"{self._root}/{name}", self._path(digest), content)
            else:
                _put_durably(self._folder / name, self._folder / digest, content)
        return digest

    def get(self, digest: str) -> bytes:
        """Returns the content, checked against its digest.

        Raises:
            InputError: If it is no digest.
            VerificationError: If the content is gone, cut off or altered.
            UnavailableError: If the store cannot be read.
        """
        path = self._path(digest)
        with self._explained("read"), _gone(digest):
            content: bytes = self._files.cat_file(path)
        if hashlib.sha256(content).hexdigest() != digest:
            raise VerificationError(
                f"artifact {digest} has {len(content)} bytes that are not those that were stored; "
                "restore it from a backup"
            )
        return content

    def has(self, digest: str) -> bool:
        """Returns whether there is content of that digest; `get` says whether it is intact.

        Raises:
            InputError: If it is no digest.
            UnavailableError: If the store cannot be read.
        """
        path = self._path(digest)
        with self._explained("read"):
            try:
                self._files.info(path)
            except FileNotFoundError:
                return False
        return True

    def size(self, digest: str) -> int:
        """Returns its length in bytes.

        Raises:
            InputError: If it is no digest.
            VerificationError: If the content is gone.
            UnavailableError: If the store cannot be read.
        """
        path = self._path(digest)
        with self._explained("read"), _gone(digest):
            return int(self._files.info(path)["size"])

    def delete(self, digest: str) -> None:
        """Removes the content; where there is none nothing happens.

        Raises:
            InputError: If it is no digest.
            UnavailableError: If it cannot be removed.
        """
        path = self._path(digest)
        with self._explained("written"):
            try:
                self._files.rm_file(path)
            except FileNotFoundError:
                return

    def _path(self, digest: str) -> str:
        if _DIGEST.fullmatch(digest) is None:
            raise InputError(f"an artifact is named by its sha256, 64 hex digits, got {digest!r}")
        return f"{self._root}/{digest}"

    def _put_elsewhere(self, partial: str, final: str, content: bytes) -> None:
        try:
            self._files.pipe_file(partial, content)
            self._files.mv(partial, final)
        except BaseException:
            with suppress(OSError):
                self._files.rm_file(partial)
            raise

    def _has_intact(self, digest: str) -> bool:
        try:
            self.get(digest)
        except VerificationError:
            return False
        if self._folder is not None:
            # Whoever put it may have been killed before its name was on disk.
            with self._explained("written"):
                sync(self._folder)
        return True

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UnavailableError(
                f"the artifact store {self._root} cannot be {what} ({error.strerror or error}); "
                "nothing was stored; check its disk or service and try again"
            ) from error


@contextmanager
def _gone(digest: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise VerificationError(
            f"artifact {digest} is not in the store; restore it from a backup"
        ) from error


def _put_durably(partial: Path, final: Path, content: bytes) -> None:
    try:
        with os.fdopen(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(final)
    finally:
        partial.unlink(missing_ok=True)
    sync(final.parent)


def _sweep(folder: Path) -> None:
    for partial in folder.glob(f".*{_PARTIAL}"):
        try:
            if time.time() - partial.stat().st_mtime > _LEFT_BEHIND_S:
                partial.unlink()
        except FileNotFoundError:  # its writer was there after all
            continue
