"""The process that trains, as the one that talks to the server sees it.

This side loads no model and no torch: it stays small, and whatever happens to training (a kill, no
memory, a hang) leaves it there to say so.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fedpeft.errors import WorkerLostError
from fedpeft.federated.messages import OfferAnswer, RoundPlan, RoundReply
from fedpeft.federated.terms import RunTerms
from fedpeft.warm_worker import WarmWorker
from fedpeft_client.policy import ClientPolicy

_LOADING_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class ClientSetup:
    """One client, as the process that trains for it has to know it.

    Attributes:
        client_id: Its name in the federation.
        folder: Where it keeps what it released.
        tombstones: Where it keeps which rows are to be forgotten.
        ledger: File or URL of its ledger.
        data: Where its rows are.
        rows: Which of them are its own, counted from 0; None: all.
        columns: Those that a row is known by in the ledger; None: all.
        budget: Epsilon and delta to set for its rows; None: leave it as it is.
        policy: What its owner allows.
    """

    client_id: str
    folder: Path
    tombstones: Path
    ledger: str
    data: str
    rows: tuple[int, ...] | None = None
    columns: tuple[str, ...] | None = None
    budget: tuple[float, float] | None = None
    policy: ClientPolicy


@dataclass(frozen=True, kw_only=True)
class Account:
    """What a client begins with.

    Attributes:
        num_rows: Number of rows.
        dataset: Their fingerprint in its ledger.
        epsilon: The budget; None where none is set.
        delta: Of the budget.
        spent: Epsilon of all that was charged to the rows, at that delta.
    """

    num_rows: int
    dataset: str
    epsilon: float | None
    delta: float | None
    spent: float | None


@dataclass(frozen=True, kw_only=True)
class Note:
    """Something that a client's owner should know."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Step:
    """A local step is done."""

    step: int
    num_steps: int


Told = Callable[[Note | Step], None]
MakeExecutor = Callable[[Sequence[ClientSetup], int | None], object]


class TrainingProcess:
    """Trains for one client, or for several that share its base models."""

    def __init__(
        self,
        setups: Sequence[ClientSetup],
        *,
        num_threads: int | None = None,
        make_executor: MakeExecutor | None = None,
    ) -> None:
        """Starts nothing yet.

        Args:
            setups: The clients; their names differ.
            num_threads: CPU threads of training; None: as torch likes.
            make_executor: Makes, in the process, what answers with the methods of
                `executor.Executor`; None: that.
        """
        self._setups = {setup.client_id: setup for setup in setups}
        self._worker = WarmWorker(
            partial(make_executor or _executor, tuple(setups), num_threads),
            name="fedpeft training",
        )
        self._closed = threading.Event()

    @property
    def pid(self) -> int | None:
        """Of the process; None where there is none now."""
        return self._worker.pid

    def account(self, client_id: str) -> Account:
        """Reads the client's rows, makes them known to its ledger, and sets their budget.

        Raises:
            InputError: If rows or ledger cannot be used, or more than the budget is spent already.
            WorkerLostError: If the process ended twice.
        """
        account: Account = self._call("account", client_id, timeout_s=_LOADING_S)
        return account

    def answer_offer(self, client_id: str, terms: RunTerms, told: Told) -> OfferAnswer:
        """See `federated.client_round.ClientRound.answer_offer`.

        Raises:
            WorkerLostError: If the process ended twice, or did not answer in time.
        """
        timeout_s = self._setups[client_id].policy.task_deadline_s
        answer: OfferAnswer = self._call(
            "answer_offer", client_id, terms, timeout_s=timeout_s, told=told
        )
        return answer

    def train(
        self, client_id: str, plan: RoundPlan, adapter: bytes, plan_digest: str, told: Told
    ) -> tuple[RoundReply, bytes | None]:
        """See `federated.client_round.ClientRound.train`; tensors are safetensors here.

        Raises:
            WorkerLostError: If the process ended twice, or did not answer in time. The round may be
                asked for again: it is paid for once.
        """
        timeout_s = self._setups[client_id].policy.task_deadline_s
        answer: tuple[RoundReply, bytes | None] = self._call(
            "train", client_id, plan, adapter, plan_digest, timeout_s=timeout_s, told=told
        )
        return answer

    def close(self) -> None:
        """Ends the process, also in the middle of a round, which can be asked for again."""
        self._closed.set()
        self._worker.close()

    def _call(self, method: str, *args: Any, timeout_s: float, told: Told | None = None) -> Any:
        started = time.monotonic()
        try:
            return self._ask(method, *args, timeout_s=timeout_s, told=told)
        except WorkerLostError as error:
            # Once more, if somebody killed it; not, if it hung or we are to end.
            if self._closed.is_set() or time.monotonic() - started >= timeout_s:
                raise
            if told is not None:
                told(Note(text=f"{error}; it is started again"))
            return self._ask(method, *args, timeout_s=timeout_s, told=told)

    def _ask(self, method: str, *args: Any, timeout_s: float, told: Told | None) -> Any:
        if self._closed.is_set():
            raise WorkerLostError("this client is stopping")
        return self._worker.call(method, *args, timeout_s=timeout_s, progress=told)


def _executor(setups: Sequence[ClientSetup], num_threads: int | None) -> object:
    from fedpeft_client.executor import Executor  # torch, in the other process alone

    return Executor(setups, num_threads=num_threads)
