"""Answers of a classifier: all rows that wait, whichever adapter each has, in one forward pass."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fedpeft.errors import UnavailableError, VerificationError
from fedpeft.serving.served_model import ServedModel

_log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class ClassificationRequest:
    """One text.

    Attributes:
        adapter: Digest of the version that answers.
        row: Token ids, one or more.
        emit: Hears of the probability of each class, or of a failure, in the model's thread.
    """

    adapter: str
    row: Sequence[int]
    emit: Callable[[list[float] | Exception], None]
    _cancelled: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """Nobody wants the answer any more."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether nobody wants the answer any more."""
        return self._cancelled.is_set()


class Classifier:
    """Answers classification requests.

    `submit` may be called from any thread, everything else from the model's alone.
    """

    def __init__(
        self, model: ServedModel, *, max_rows: int, max_waiting: int, max_tokens: int = 2048
    ) -> None:
        """Prepares it.

        Args:
            model: What answers.
            max_rows: Answered at once.
            max_waiting: Requests that may wait; more are refused.
            max_tokens: Of the rows that are answered at once, padding included.
        """
        self._model = model
        self._max_rows, self._max_waiting, self._max_tokens = max_rows, max_waiting, max_tokens
        self._waiting: deque[ClassificationRequest] = deque()
        self._lock = threading.Lock()
        self._closed: Exception | None = None

    @property
    def num_waiting(self) -> int:
        """Requests that no step has begun."""
        return len(self._waiting)

    @property
    def num_rows(self) -> int:
        """None stays from one step to the next."""
        return 0

    def submit(self, requests: Sequence[ClassificationRequest]) -> None:
        """Queues requests: all of them, or none.

        Raises:
            UnavailableError: If too many wait already.
        """
        with self._lock:
            if self._closed is not None:
                raise self._closed
            if len(self._waiting) + len(requests) > self._max_waiting:
                raise UnavailableError(
                    f"{len(self._waiting)} texts wait already; try again later, or elsewhere"
                )
            self._waiting.extend(requests)

    def has_work(self) -> bool:
        """See `Answering`."""
        return bool(self._waiting)

    def step(self) -> None:
        """See `Answering`: one batch."""
        requests = self._next()
        if not requests:
            return
        try:
            with self._model.bank.rows([request.adapter for request in requests]):
                logits = self._model.logits([request.row for request in requests])
        except Exception as error:
            _log.exception("a batch of %d texts failed", len(requests))
            for request in requests:
                request.emit(error)
            return
        for request, logits_C in zip(requests, logits, strict=True):
            own_C = logits_C[: self._model.bank.num_classes(request.adapter)]
            if own_C.isfinite().all():
                request.emit(own_C.double().softmax(0).tolist())
            else:
                request.emit(VerificationError("the adapter's outputs are not finite numbers"))

    def fail_all(self, error: Exception) -> None:
        """See `Answering`."""
        with self._lock:
            self._closed = error
            waiting, self._waiting = self._waiting, deque()
        for request in waiting:
            request.emit(error)

    def _next(self) -> list[ClassificationRequest]:
        found: list[ClassificationRequest] = []
        longest = 0
        with self._lock:
            while self._waiting and len(found) < self._max_rows:
                if self._waiting[0].cancelled:
                    self._waiting.popleft()
                    continue
                longest = max(longest, len(self._waiting[0].row))
                if found and longest * (len(found) + 1) > self._max_tokens:
                    break
                found.append(self._waiting.popleft())
        return found
