"""Waiting for what another thread of this process will record."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class News:
    """Wakes those who wait whenever something was recorded. Threads may share one."""

    def __init__(self) -> None:
        """Nothing has been recorded yet."""
        self._changed = threading.Condition()
        self._number = 0
        self._closed = False

    def tell(self) -> None:
        """Wakes who waits; after what was recorded is durable."""
        with self._changed:
            self._number += 1
            self._changed.notify_all()

    def close(self) -> None:
        """Lets go who waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def wait_for(self, find: Callable[[], list[T]], timeout_s: float) -> list[T]:
        """Returns what `find` finds, as soon as it finds something.

        Returns:
            Nothing if the time ran out or it was closed.
        """
        until = time.monotonic() + timeout_s
        while True:
            with self._changed:
                if self._closed:
                    return []
                seen = self._number
            found = find()
            if found:
                return found
            if not self._news_after(seen, until - time.monotonic()):
                return []

    def _news_after(self, seen: int, timeout_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._closed or self._number > seen, timeout_s)
