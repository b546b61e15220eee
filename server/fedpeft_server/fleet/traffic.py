"""How many bytes each run moved."""

import threading
from collections import Counter


class Traffic:
    """Counts HTTP heads and bodies by run; None is no run. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sent: Counter[int | None] = Counter()
        self._received: Counter[int | None] = Counter()

    def sent(self, run_id: int | None, num_bytes: int) -> None:
        """Counts an answer."""
        with self._lock:
            self._sent[run_id] += num_bytes

    def received(self, run_id: int | None, num_bytes: int) -> None:
        """Counts a request."""
        with self._lock:
            self._received[run_id] += num_bytes

    def of(self, run_id: int) -> tuple[int, int]:
        """Returns the bytes sent and received."""
        with self._lock:
            return self._sent[run_id], self._received[run_id]
