"""Answers of a causal language model, token by token, for requests that come and go.

Every step is one forward pass over all rows that are being answered, whichever adapter each of them
has; new rows join between two steps, after one pass over their prompts (Orca, Yu et al., 2022).

Legend: N rows, T tokens, V vocabulary.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from fedpeft.errors import UnavailableError, VerificationError
from fedpeft.serving.answer_text import AnswerText
from fedpeft.serving.row_cache import RowCache
from fedpeft.serving.sampling import Sampler, Sampling
from fedpeft.serving.served_model import ServedModel

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Some more text of an answer; it may be empty."""

    text: str
    num_tokens: int


@dataclass(frozen=True, kw_only=True)
class Ended:
    """The end of an answer. "length": it has as many tokens as were asked for, or fit."""

    reason: Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True)
class Failed:
    """An answer that cannot be given, and why."""

    error: Exception


Event: TypeAlias = Piece | Ended | Failed


@dataclass(kw_only=True)
class GenerationRequest:
    """One prompt.

    Attributes:
        adapter: Digest of the version that answers, to the end.
        prompt: Token ids, one or more, and fewer than a row may have.
        emit: Hears of the answer, in the model's thread: pieces, and an end or a failure.
    """

    adapter: str
    prompt: Sequence[int]
    sampling: Sampling
    emit: Callable[[Event], None]
    _cancelled: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """Nobody wants the answer any more."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether nobody wants the answer any more."""
        return self._cancelled.is_set()


@dataclass(kw_only=True)
class _Row:
    """A request that is being answered.

    Attributes:
        length: Tokens of it that are in the cache.
        last: The token that was drawn last; it goes into the next step.
    """

    request: GenerationRequest
    sampler: Sampler
    text: AnswerText
    length: int
    last: int = 0
    num_drawn: int = 0


class Generator:
    """Answers generation requests.

    `submit` may be called from any thread, everything else from the model's alone.
    """

    def __init__(
        self,
        model: ServedModel,
        *,
        max_rows: int,
        max_waiting: int,
        max_prompt_tokens: int = 2048,
    ) -> None:
        """Prepares it.

        Args:
            model: What answers.
            max_rows: Answered at once.
            max_waiting: Requests that may wait; more are refused.
            max_prompt_tokens: Of the prompts that join in one step, padding included; a longer one
                joins alone.
        """
        self._model = model
        self._max_rows, self._max_waiting = max_rows, max_waiting
        self._max_prompt_tokens = max_prompt_tokens
        self._cache = RowCache(max_rows)
        self._rows: list[_Row] = []
        self._waiting: deque[GenerationRequest] = deque()
        self._lock = threading.Lock()
        self._closed: Exception | None = None

    @property
    def num_waiting(self) -> int:
        """Requests that no step has begun."""
        return len(self._waiting)

    @property
    def num_rows(self) -> int:
        """Requests that are being answered."""
        return len(self._rows)

    def submit(self, requests: Sequence[GenerationRequest]) -> None:
        """Queues requests: all of them, or none.

        Raises:
            UnavailableError: If too many wait already.
        """
        with self._lock:
            if self._closed is not None:
                raise self._closed
            if len(self._waiting) + len(requests) > self._max_waiting:
                raise UnavailableError(
                    f"{len(self._waiting)} requests wait already; try again later, or elsewhere"
                )
            self._waiting.extend(requests)

    def has_work(self) -> bool:
        """See `Answering`."""
        return bool(self._rows or self._waiting)

    def step(self) -> None:
        """See `Answering`: new rows join and get their first token, then every row gets one."""
        self._drop_cancelled()
        joining = self._joining()
        if joining:
            self._guarded(joining, self._join)
        if self._rows:
            self._guarded(list(self._rows), self._advance)

    def fail_all(self, error: Exception) -> None:
        """See `Answering`."""
        with self._lock:
            self._closed = error
            waiting, self._waiting = self._waiting, deque()
        for request in (*(row.request for row in self._rows), *waiting):
            request.emit(Failed(error=error))
        self._rows = []
        self._cache.forget()

    def _guarded(self, rows: list[_Row], work: Callable[[list[_Row]], None]) -> None:
        try:
            work(rows)
        except Exception as error:
            # What the cache holds now is unknown, so no row can go on.
            _log.exception("a step over %d rows failed", len(rows))
            ended = {id(row): row for row in (*rows, *self._rows)}
            for row in ended.values():
                row.request.emit(Failed(error=error))
            self._rows = []
            self._cache.forget()

    def _drop_cancelled(self) -> None:
        with self._lock:
            self._waiting = deque(r for r in self._waiting if not r.cancelled)
        for row in [row for row in self._rows if row.request.cancelled]:
            self._leave(row)

    def _joining(self) -> list[_Row]:
        """In the order in which they came, as many as there is room for."""
        joining: list[_Row] = []
        longest = 0
        with self._lock:
            while self._waiting and len(self._rows) + len(joining) < self._max_rows:
                request = self._waiting[0]
                longest = max(longest, len(request.prompt))
                if joining and longest * (len(joining) + 1) > self._max_prompt_tokens:
                    break
                self._waiting.popleft()
                joining.append(
                    _Row(
                        request=request,
                        sampler=Sampler(sampling=request.sampling),
                        text=AnswerText(
                            self._model.tokenizer, request.prompt, request.sampling.stop
                        ),
                        length=len(request.prompt),
                    )
                )
        return joining

    def _join(self, joining: list[_Row]) -> None:
        lengths_N = torch.tensor([row.length for row in joining])
        ids_NT = torch.zeros(len(joining), int(lengths_N.max()), dtype=torch.int64)
        for n, row in enumerate(joining):
            ids_NT[n, : row.length] = torch.tensor(list(row.request.prompt))
        positions_NT = torch.arange(ids_NT.shape[1]).expand_as(ids_NT)
        first = len(self._rows)
        with self._model.bank.rows([row.request.adapter for row in joining]):
            logits_NV = self._model.next_logits(
                ids_NT, positions_NT, lengths_N - 1, self._cache, first
            )
        self._rows += joining
        self._draw(joining, logits_NV)

    def _advance(self, rows: list[_Row]) -> None:
        lengths_N = torch.tensor([row.length for row in rows])
        with self._model.bank.rows([row.request.adapter for row in rows]):
            logits_NV = self._model.next_logits(
                torch.tensor([[row.last] for row in rows]),
                lengths_N.unsqueeze(1),
                torch.zeros_like(lengths_N),
                self._cache,
                0,
            )
        for row in rows:
            row.length += 1
        self._draw(rows, logits_NV)

    def _draw(self, rows: list[_Row], logits_NV: Tensor) -> None:
        for row, logits_V in zip(rows, logits_NV, strict=True):
            if logits_V.isnan().any() or not logits_V.max().isfinite():
                self._cache.clear(self._slot(row))
                self._leave(row)
                row.request.emit(
                    Failed(error=VerificationError("the adapter's outputs are not finite numbers"))
                )
                continue
            row.last = row.sampler.draw(logits_V)
            row.num_drawn += 1
            self._tell(row)

    def _tell(self, row: _Row) -> None:
        ended: Literal["stop", "length"] | None = None
        piece = ""
        if row.last in self._model.end_ids:
            ended = "stop"
        else:
            piece = row.text.add(row.last)
            full = row.length + 1 >= self._model.longest
            if row.text.stopped:
                ended = "stop"
            elif full or row.num_drawn >= row.request.sampling.max_tokens:
                ended = "length"
        if ended is not None:
            piece += row.text.end()
            # A stop text may have been completed by what was held back.
            ended = "stop" if row.text.stopped else ended
            self._leave(row)
        row.request.emit(Piece(text=piece, num_tokens=1))
        if ended is not None:
            row.request.emit(Ended(reason=ended))

    def _slot(self, row: _Row) -> int:
        return next(slot for slot, other in enumerate(self._rows) if other is row)

    def _leave(self, row: _Row) -> None:
        """The last row takes the slot that becomes free."""
        slot = self._slot(row)
        last = self._rows.pop()
        if last is not row:
            self._cache.move(len(self._rows), slot)
            self._rows[slot] = last
