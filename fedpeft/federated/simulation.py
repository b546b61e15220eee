"""A whole federated run on one machine: the round's data path, top to bottom."""

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from fedpeft.dp.client_level import ClientLevel
from fedpeft.dp.config import PrivacyConfig
from fedpeft.dp.randomness import Keystream
from fedpeft.errors import BudgetError, ConfigError, VerificationError
from fedpeft.federated.accounts import Accounts, Statement, open_accounts
from fedpeft.federated.adapted_model import AdaptedModel, adapter_tensors
from fedpeft.federated.aggregators import AGGREGATORS
from fedpeft.federated.aggregators.combiners import combiner_for
from fedpeft.federated.aggregators.updates import update_norm
from fedpeft.federated.config import FederationConfig
from fedpeft.federated.local_training import LocalResult
from fedpeft.federated.observer import Observer
from fedpeft.federated.plan import RunPlan
from fedpeft.federated.records import RoundReport
from fedpeft.federated.run_folder import Progress, RunFolder, Update
from fedpeft.federated.trainer import Job, Trainer
from fedpeft.ledger.pricing import rounded_up
from fedpeft.models.dataset import Dataset
from fedpeft.models.evaluation import evaluate
from fedpeft.models.table import Table
from fedpeft.types import derive_seed, size_bytes, tensor_digest

_MOST_LOSSES = 3  # of one job's workers, one after the other


class Stopped(Exception):  # noqa: N818
    """The run was asked to stop and can be resumed."""


@dataclass(kw_only=True)
class Seconds:
    """Wall-clock seconds so far, over all sessions of the run."""

    training: float = 0.0
    evaluation: float = 0.0


@dataclass(kw_only=True)
class Simulation:
    """One run and its state.

    Attributes:
        run_id: Tells the run's charges in a ledger from those of others.
        model: Base model with the adapter injected; evaluates.
        trainer: Trains the clients.
        rows: Client id → its rows as they were read: what the ledger knows them by.
        test: Held-out rows.
        plan: Cohorts, weights and noise.
        federation: The run's federation section.
        privacy: The run's privacy section.
        task: What the metrics are.
        max_tokens: Bound on the padded tokens of one physical batch.
        folder: Where the run keeps what must outlive it.
        observer: What watches.
        stop_requested: Asked before each group of clients; the run stops where it can be resumed.
        statements: Client id → where its budget stands after the run; empty where privacy is off.
        ledger_head: The ledger's head after the run, checked; None where privacy is off.
    """

    run_id: str
    model: AdaptedModel
    trainer: Trainer
    rows: Mapping[str, Table]
    test: Dataset
    plan: RunPlan
    federation: FederationConfig
    privacy: PrivacyConfig
    task: Literal["classification", "causal-lm"]
    max_tokens: int
    folder: RunFolder
    observer: Observer
    stop_requested: Callable[[], bool] = lambda: False
    tensors: dict[str, Tensor] = field(init=False)
    records: list[RoundReport] = field(init=False, default_factory=list)
    initial_metrics: dict[str, float] = field(init=False, default_factory=dict)
    num_nonfinite: dict[str, int] = field(init=False)
    notes: list[str] = field(init=False, default_factory=list)
    seconds: Seconds = field(init=False, default_factory=Seconds)
    statements: dict[str, Statement] = field(init=False, default_factory=dict)
    ledger_head: str | None = field(init=False, default=None)

    def run(self) -> None:
        """Runs every round that is not finished yet.

        Raises:
            Stopped: If it was asked to; everything finished is durable.
            LedgerError: If a charge could not be written; nothing was trained on it.
            VerificationError: If the adapter never changed, or the ledger is not sound.
        """
        with self.folder.exclusively(), ExitStack() as stack:
            self._accounts: Accounts | None = None
            if self.privacy.enabled:
                if self.privacy.ledger is None and self.folder.load_round() is not None:
                    self.folder.check_ledger_exists()
                self._accounts = stack.enter_context(self._open_accounts())
            self._run()
            if self._accounts is not None:
                self.ledger_head = str(self._accounts.ledger.verify())
                self.statements = {c: self._accounts.statement(c) for c in self.plan.clients}

    def _open_accounts(self) -> AbstractContextManager[Accounts]:
        return open_accounts(
            self.privacy.ledger or str(self.folder.ledger),
            self.rows,
            run_id=self.run_id,
            delta=self.privacy.delta,
        )

    def _check_ledger(self, progress: Progress) -> None:
        """Refuses to go on with another ledger than the one that was charged so far."""
        if self._accounts is not None and progress.ledger_head is not None:
            spent = progress.records[-1].epsilon if progress.records else {}
            self._accounts.check_continues(progress.ledger_head, spent)

    def _run(self) -> None:
        self.aggregator = AGGREGATORS[self.federation.aggregator]
        self.combiner = combiner_for(self.federation)
        self.model.set_trainable(self.aggregator.trained_factors)
        self._restore()
        if self._accounts is not None:
            self._accounts.set_missing_budgets(self.privacy.target_epsilon)
        self.observer.run_started(
            num_rounds=self.federation.num_rounds,
            first_round=len(self.records) + 1,
            clients=list(self.plan.clients),
            metric_name="accuracy" if self.task == "classification" else "perplexity",
            private=self.privacy.enabled,
            target_epsilon=self.privacy.target_epsilon if self.privacy.enabled else None,
        )
        if not self.initial_metrics:
            self.initial_metrics = self._evaluate()
            self._save()
        while len(self.records) < self.federation.num_rounds:
            self._round(len(self.records) + 1)
        if not self.model.delta_norm(adapter_tensors(self.tensors)) > 0:
            raise VerificationError(
                "the adapter did not change: after the last round the norm of its update is zero"
            )
        norms = [norm for record in self.records for norm in record.update_norms.values()]
        if not any(math.isfinite(norm) for norm in norms):
            raise VerificationError(
                "the adapter is noise alone: no client ever sent an update of finite numbers; "
                "lower learning_rate"
            )

    @property
    def final_metrics(self) -> dict[str, float]:
        """Metrics after the last round, which is always evaluated."""
        metrics = self.records[-1].metrics
        assert metrics is not None
        return metrics

    def _round(self, round_number: int) -> None:
        started = time.monotonic()
        cohort = self.plan.cohorts[round_number - 1]
        self.observer.round_started(round_number, cohort)
        paid = self._updates(round_number, cohort)
        updates = {client_id: update.result for client_id, update in paid.items()}
        if self.plan.client_level is None:
            self._drop_diverged(round_number, updates)
        else:
            self._note_diverged(round_number, updates)
        self._drop_too_few(round_number, updates)
        if updates:
            sent = [result.tensors for result in updates.values()]
            if self.plan.client_level is None:
                released, weights = sent, [self.plan.clients[c].weight for c in updates]
            else:
                released, weights = [self._noised_mean(round_number, paid)], [1.0]
            aggregate = self.aggregator.aggregate(self.tensors, released, weights, self.combiner)
            diagnostics = dict(aggregate.diagnostics)
            kept = zip(updates, aggregate.kept, strict=True) if aggregate.kept else ()
            diagnostics |= {f"share_kept_of_{client_id}": share for client_id, share in kept}
            norms = {
                client_id: update_norm(self.tensors, r.tensors) for client_id, r in updates.items()
            }
            downlink_bytes = len(updates) * size_bytes(self.tensors)
            self.tensors = dict(aggregate.tensors)
        else:
            sent, diagnostics, norms, downlink_bytes = [], {}, {}, 0
        for client_id, result in updates.items():
            self.num_nonfinite[client_id] += result.num_nonfinite
        self.seconds.training += time.monotonic() - started
        last = round_number == self.federation.num_rounds
        evaluated = last or round_number % self.federation.evaluate_every == 0
        metrics = self._evaluate() if evaluated else None
        accounts = self._accounts
        spent = {c: accounts.spent_epsilon(c) for c in self.plan.clients} if accounts else {}
        self.records.append(
            RoundReport(
                round=round_number,
                cohort=list(updates),
                seconds=time.monotonic() - started,
                uplink_bytes=sum(size_bytes(tensors) for tensors in sent),
                downlink_bytes=downlink_bytes,
                update_norms=norms,
                epsilon=spent,
                diagnostics=diagnostics,
                metrics=metrics,
            )
        )
        self._save()
        self.observer.round_finished(round_number, metrics, max(spent.values(), default=None))

    def _updates(self, round_number: int, cohort: tuple[str, ...]) -> dict[str, Update]:
        """Returns what the cohort's clients made of the adapter, those that could pay.

        Reserve, train, make durable, commit: a crash between any two of them loses no charge, and
        an update that is durable is never made again.
        """
        size = self.federation.clients_at_once
        groups = [cohort[start : start + size] for start in range(0, len(cohort), size)]
        done: dict[str, Update] = {}
        waiting: deque[tuple[str, ...]] = deque()
        for group in groups:
            stored = self.folder.load_updates(round_number, group)
            if stored is None:
                waiting.append(group)
            else:
                done |= self._commit(stored)
        losses: Counter[tuple[str, ...]] = Counter()
        while waiting:
            any_trained = False
            jobs = self._jobs(round_number, waiting)
            for job, results in self.trainer.train(self.tensors, jobs, self.observer):
                any_trained = True
                if results is None:
                    losses[job.group] += 1
                    self._note_lost(job, losses[job.group])
                    waiting.append(job.group)
                    continue
                made = {
                    client_id: Update(result=result, reservation=job.reservations[client_id])
                    for client_id, result in results.items()
                }
                self.folder.save_updates(round_number, job.group, made)
                done |= self._commit(made)
                for client_id in made:
                    self._tell_finished(round_number, client_id)
            if waiting and not any_trained:
                raise Stopped
        for client_id in cohort:
            if client_id not in done:
                self._note_sitting_out(round_number, client_id)
        return {client_id: done[client_id] for client_id in cohort if client_id in done}

    def _noised_mean(self, round_number: int, paid: Mapping[str, Update]) -> dict[str, Tensor]:
        """Returns what all clients together released: where they started plus their noised mean.

        It is drawn once: a second draw after a crash would be a second release.
        """
        assert self.plan.client_level is not None
        # Sorted: an update that was read from disk has its tensors in another order.
        names = sorted(next(iter(paid.values())).result.tensors)
        start = {name: self.tensors[name] for name in names}
        mean = self.folder.load_release(round_number)
        if mean is None:
            seed = self._coin_seed(round_number, "coordinator")
            released = ClientLevel(
                {name: tensor.shape for name, tensor in start.items()},
                self.plan.client_level,
                Keystream.from_system() if seed is None else Keystream.insecure_from_seed(seed),
            ).release(
                {name: tensor - start[name] for name, tensor in update.result.tensors.items()}
                for update in paid.values()
            )
            mean = dict(released.mean)
            self.folder.save_release(round_number, mean)
        assert self._accounts is not None
        for update in paid.values():
            assert update.reservation is not None
            self._accounts.ledger.commit(update.reservation, tensor_digest(mean))
        return {name: tensor + mean[name] for name, tensor in start.items()}

    def _jobs(self, round_number: int, waiting: deque[tuple[str, ...]]) -> Iterator[Job]:
        """Yields a job for each waiting group, paid for at the moment it is asked for."""
        while waiting and not self.stop_requested():
            group = waiting.popleft()
            reservations = {}
            for client_id in group:
                try:
                    reservations[client_id] = self._reserve(round_number, client_id)
                except BudgetError:
                    continue
            if not reservations:
                self.folder.save_updates(round_number, group, {})
                continue
            yield Job(
                round=round_number,
                group=group,
                reservations=reservations,
                coin_seeds={c: self._coin_seed(round_number, c) for c in reservations},
            )

    def _reserve(self, round_number: int, client_id: str) -> str | None:
        """Charges the client for the round before its first gradient."""
        event = self.plan.event(client_id, self.federation.local_steps)
        if self._accounts is None or event is None:
            return None
        return self._accounts.reserve(round_number, client_id, event)

    def _commit(self, updates: Mapping[str, Update]) -> Mapping[str, Update]:
        """Records what was released; a second time, after a crash, changes nothing.

        With client-level privacy an update is no release: their mean is.
        """
        for update in updates.values():
            if self.plan.client_level is None and update.reservation is not None:
                assert self._accounts is not None
                digest = tensor_digest(update.result.tensors)
                self._accounts.ledger.commit(update.reservation, digest)
        return updates

    def _tell_finished(self, round_number: int, client_id: str) -> None:
        spent = self._accounts.spent_epsilon(client_id) if self._accounts else None
        self.observer.client_finished(round_number, client_id, spent)

    def _drop_diverged(self, round_number: int, updates: dict[str, LocalResult]) -> None:
        for client_id in _diverged(updates):
            del updates[client_id]
            self._note(
                f"round {round_number}: the update of {client_id} holds NaN or infinite values "
                "and is left out; lower learning_rate"
            )

    def _drop_too_few(self, round_number: int, updates: dict[str, LocalResult]) -> None:
        """Nobody's update counts where too few came to tell the malicious ones from the others."""
        needed = self.combiner.min_num_updates
        if len(updates) < needed:
            came = f"only {len(updates)} of {needed} updates" if updates else "no update"
            self._note(f"round {round_number}: {came} to aggregate; the adapter is unchanged")
            updates.clear()

    def _note_diverged(self, round_number: int, updates: Mapping[str, LocalResult]) -> None:
        """With client-level privacy they count as zero: who is in a mean is public."""
        for client_id in _diverged(updates):
            self._note(
                f"round {round_number}: the update of {client_id} holds NaN or infinite values "
                "and counts as zero; lower learning_rate"
            )

    def _note_sitting_out(self, round_number: int, client_id: str) -> None:
        assert self._accounts is not None
        statement = self._accounts.statement(client_id)
        self._note(
            f"round {round_number}: {client_id} sits out: epsilon {rounded_up(statement.epsilon)} "
            f"is spent on its rows, one more round would exceed its budget of "
            f"{statement.budget_epsilon:g}"
        )

    def _note_lost(self, job: Job, times: int) -> None:
        clients = ", ".join(job.reservations)
        if times == _MOST_LOSSES:
            raise ConfigError(
                f"round {job.round}: the worker that trained {clients} was lost {times} times; it "
                "may be out of memory: lower clients_at_once, max_tokens_per_batch or --workers"
            )
        self._note(
            f"round {job.round}: the worker that trained {clients} was lost; they train again, and "
            "pay again"
        )

    def _coin_seed(self, round_number: int, client_id: str) -> int | None:
        if self.privacy.enabled and not self.privacy.insecure_seeded_noise:
            return None
        return derive_seed(self.federation.seed, "coins", round_number, client_id)

    def _evaluate(self) -> dict[str, float]:
        started = time.monotonic()
        self.model.load(self.tensors)
        self.observer.evaluation_started(len(self.test))
        metrics = evaluate(
            self.model.task_model,
            self.test,
            task=self.task,
            max_tokens=self.max_tokens,
            advanced=self.observer.evaluation_advanced,
        )
        self.seconds.evaluation += time.monotonic() - started
        return metrics

    def _restore(self) -> None:
        self.num_nonfinite = dict.fromkeys(self.plan.clients, 0)
        self.tensors = self.model.tensors()
        saved = self.folder.load_round()
        if saved is None:
            return
        progress, self.tensors = saved
        self._check_ledger(progress)
        self.records = list(progress.records)
        self.initial_metrics = dict(progress.initial_metrics)
        self.num_nonfinite |= progress.num_nonfinite
        self.notes = list(progress.notes)
        self.seconds = Seconds(**progress.seconds)

    def _save(self) -> None:
        progress = Progress(
            round=len(self.records),
            digest=tensor_digest(self.tensors),
            initial_metrics=self.initial_metrics,
            num_nonfinite=self.num_nonfinite,
            records=self.records,
            notes=self.notes,
            seconds=vars(self.seconds),
            ledger_head=str(self._accounts.ledger.head()) if self._accounts else None,
        )
        self.folder.save_round(progress, self.tensors)

    def _note(self, message: str) -> None:
        self.notes.append(message)
        self.observer.note(message)


def _diverged(updates: Mapping[str, LocalResult]) -> list[str]:
    return [
        client_id
        for client_id, result in updates.items()
        if not all(bool(torch.isfinite(tensor).all()) for tensor in result.tensors.values())
    ]
