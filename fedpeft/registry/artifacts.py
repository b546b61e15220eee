"""Content under its sha256: what is put twice is there once, what was altered is not given out."""

from pathlib import Path


class ArtifactStore:
    """A folder, or any place that fsspec reaches by URL. Threads and processes may share one."""

    def __init__(self, url: str | Path) -> None:
        """Opens the store, and makes its folder.

        Args:
            url: A folder's path, or a URL such as `s3://bucket/prefix`.

        Raises:
            ConfigError: If nothing here reads such URLs.
            UnavailableError: If the folder cannot be made.
        """
        raise NotImplementedError

    def put(self, content: bytes) -> str:
        """Stores content whole or not at all, in a local folder durably; returns its sha256, hex.

        Raises:
            UnavailableError: If it cannot be written.
        """
        raise NotImplementedError

    def get(self, digest: str) -> bytes:
        """Returns the content, checked against its digest.

        Raises:
            InputError: If it is no digest.
            VerificationError: If the content is gone, cut off or altered.
            UnavailableError: If the store cannot be read.
        """
        raise NotImplementedError

    def has(self, digest: str) -> bool:
        """Returns whether there is content of that digest."""
        raise NotImplementedError

    def size(self, digest: str) -> int:
        """Returns its length in bytes.

        Raises:
            VerificationError: If the content is gone.
        """
        raise NotImplementedError

    def delete(self, digest: str) -> None:
        """Removes the content; where there is none nothing happens."""
        raise NotImplementedError
