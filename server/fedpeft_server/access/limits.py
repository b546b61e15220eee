"""How much one caller may ask for, so that it cannot take what all of them need."""

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fedpeft.wire.catalogue import Refused

_MOST_CALLERS = 10_000


class Concurrency:
    """Calls that are open at the same time."""

    def __init__(self, *, max_streams: int, max_calls_per_caller: int) -> None:
        """Takes the bounds: of all streams together, and of all calls of one caller."""
        self._max_streams, self._max_calls = max_streams, max_calls_per_caller
        self._lock = threading.Lock()
        self._num_streams = 0
        self._by_caller: Counter[str] = Counter()

    @contextmanager
    def taken(self, caller: str, *, stream: bool) -> Iterator[None]:
        """Counts a call while it is open.

        Raises:
            RemoteError: `busy`, where it would be one too many.
        """
        with self._lock:
            if self._by_caller[caller] >= self._max_calls:
                raise Refused.BUSY.error(f"{self._max_calls} calls of yours are open already")
            if stream and self._num_streams >= self._max_streams:
                raise Refused.BUSY.error(f"{self._max_streams} streams are open already")
            self._by_caller[caller] += 1
            self._num_streams += stream
        try:
            yield
        finally:
            with self._lock:
                self._num_streams -= stream
                self._by_caller[caller] -= 1
                if not self._by_caller[caller]:
                    del self._by_caller[caller]


class Rate:
    """A bucket of tokens for each name: full at first, filled again by the minute."""

    def __init__(
        self, *, burst: int, per_minute: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Takes the size of a bucket, how fast it fills, and seconds that only go forward."""
        self._burst, self._per_second = float(burst), per_minute / 60
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, name: str) -> bool:
        """Takes a token; False where there is none."""
        with self._lock:
            now = self._clock()
            tokens, since = self._buckets.pop(name, (self._burst, now))
            tokens = min(self._burst, tokens + (now - since) * self._per_second)
            allowed = tokens >= 1
            self._buckets[name] = (tokens - allowed, now)
            if len(self._buckets) > _MOST_CALLERS:
                # Names are those of certificates that the authority issued: this is its fault.
                self._buckets.popitem(last=False)
            return allowed
