"""What runs in the process that trains: for each of its clients the half of `client_round`."""

import os
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch

from fedpeft.errors import FedpeftError
from fedpeft.federated.client_round import ClientRound
from fedpeft.federated.client_rows import ClientRows
from fedpeft.federated.client_store import ClientStore
from fedpeft.federated.messages import OfferAnswer, RoundPlan, RoundReply
from fedpeft.federated.refusals import refusal_of
from fedpeft.federated.terms import RunTerms
from fedpeft.federated.tombstones import Tombstones
from fedpeft.ledger import Ledger
from fedpeft.models.sources import read_table
from fedpeft.models.table import Table
from fedpeft.wire.blobs import read_blob, to_blob
from fedpeft_client.training import Account, ClientSetup, Note, Step, Told
from fedpeft_client.workplace import ClientWorkplace, Models


class Executor:
    """Clients that share base models and the process."""

    def __init__(self, setups: Sequence[ClientSetup], *, num_threads: int | None) -> None:
        """Reads no row and loads no model yet.

        Signals are for the process that started this one: with it this one ends.
        """
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.umask(0o077)
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        self._watcher = _Watcher()
        tables: dict[str, Table] = {}
        models: dict[str, Models] = {}
        self._clients = {
            setup.client_id: _Client(
                setup=setup,
                tables=tables,
                models=models.setdefault(setup.policy.model_dump_json(), Models(setup.policy)),
                note=self._watcher.note,
            )
            for setup in setups
        }

    def account(self, client_id: str) -> Account:
        """See `training.TrainingProcess.account`."""
        client = self._clients[client_id]
        rows, budget = client.rows, client.setup.budget
        with Ledger.open(client.setup.ledger) as ledger:
            if budget is not None:
                ledger.set_budget(rows.dataset, epsilon=budget[0], delta=budget[1])
            balance = ledger.balance(rows.dataset)
        return Account(
            num_rows=rows.num_examples,
            dataset=rows.dataset,
            epsilon=balance.epsilon,
            delta=balance.delta,
            spent=balance.spent,
        )

    def answer_offer(self, client_id: str, terms: RunTerms, *, progress: Told) -> OfferAnswer:
        """See `training.TrainingProcess.answer_offer`."""
        with self._watcher.telling(progress):
            try:
                with self._half(client_id) as half:
                    return half.answer_offer(terms)
            except Exception as error:  # whatever it is, the coordinator gets a code
                self._watcher.failed(error)
                return OfferAnswer(
                    run_id=terms.run_id,
                    client_id=client_id,
                    terms_digest=terms.digest,
                    answer=refusal_of(error),
                )

    def train(
        self, client_id: str, plan: RoundPlan, adapter: bytes, plan_digest: str, *, progress: Told
    ) -> tuple[RoundReply, bytes | None]:
        """See `training.TrainingProcess.train`."""
        with self._watcher.telling(progress):
            try:
                with self._half(client_id) as half:
                    reply, update = half.train(plan, read_blob(adapter), plan_digest)
                    return reply, None if update is None else to_blob(update)
            except Exception as error:  # whatever it is, the coordinator gets a code
                self._watcher.failed(error)
                refused = RoundReply(
                    run_id=plan.terms.run_id,
                    client_id=client_id,
                    round=plan.round,
                    plan_digest=plan_digest,
                    answer=refusal_of(error),
                )
                return refused, None

    @contextmanager
    def _half(self, client_id: str) -> Iterator[ClientRound]:
        client = self._clients[client_id]
        with Ledger.open(client.setup.ledger) as ledger:
            yield ClientRound(
                client_id,
                policy=client.setup.policy,
                workplace=client.workplace,
                ledger=ledger,
                store=ClientStore(client.setup.folder),
                watcher=self._watcher,
            )


@dataclass(frozen=True, kw_only=True)
class _Client:
    """What one client has; `tables` are shared, so that a file is read once."""

    setup: ClientSetup
    tables: dict[str, Table]
    models: Models
    note: Callable[[str], None]

    @cached_property
    def rows(self) -> ClientRows:
        setup = self.setup
        if setup.data not in self.tables:
            self.tables[setup.data] = read_table(setup.data, [])
        table = self.tables[setup.data]
        if setup.rows is not None:
            table = table.take(setup.rows)
        names = setup.columns or tuple(table.columns)
        known_by = Table(table.location, {name: table.column(name) for name in names})
        with Ledger.open(setup.ledger) as ledger:
            return ClientRows(
                table=table, dataset=ledger.register(known_by.records()), columns=names
            )

    @cached_property
    def workplace(self) -> ClientWorkplace:
        return ClientWorkplace(
            self.rows,
            self.models,
            tombstones=Tombstones(self.setup.tombstones),
            max_tokens=self.setup.policy.max_tokens_per_batch,
            note=self.note,
        )


class _Watcher:
    """Tells the other process, during a call."""

    def __init__(self) -> None:
        self._tell: Told = lambda told: None

    @contextmanager
    def telling(self, tell: Told) -> Iterator[None]:
        self._tell = tell
        try:
            yield
        finally:
            self._tell = lambda told: None

    def note(self, message: str) -> None:
        self._tell(Note(text=message))

    def step_finished(self, step: int, num_steps: int) -> None:
        self._tell(Step(step=step, num_steps=num_steps))

    def failed(self, error: Exception) -> None:
        """An error that is no refusal of `client_round`: if it is ours, its text says enough."""
        if isinstance(error, FedpeftError):
            self.note(str(error))
        else:
            self.note("".join(traceback.format_exception(error)).rstrip())
