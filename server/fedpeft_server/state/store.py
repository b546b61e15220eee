"""What every part of the state has: the database, opened once and shared by all threads."""

from pathlib import Path
from types import TracebackType
from typing import Self


class Store:
    """An open database."""

    @classmethod
    def open(cls, location: str | Path, *, busy_timeout_s: float = 10.0) -> Self:
        """Opens the state, makes it where there is none, migrates it where it is older.

        Args:
            location: A file's path, `sqlite:///path` or `postgresql://user@host/database`.
            busy_timeout_s: How long to wait for another writer.

        Raises:
            StateError: If it is something else, or a newer fedpeft wrote it.
            UnavailableError: If the database cannot be reached.
        """
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the database; who waits for events is let go."""
        raise NotImplementedError
