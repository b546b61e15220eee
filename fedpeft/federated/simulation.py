"""A whole federated run on one machine: the round's data path, top to bottom."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from fedpeft.dp.accounting import epsilon
from fedpeft.dp.config import PrivacyConfig
from fedpeft.dp.randomness import Keystream
from fedpeft.errors import VerificationError
from fedpeft.federated.adapted_model import AdaptedModel, adapter_tensors
from fedpeft.federated.aggregators import AGGREGATORS
from fedpeft.federated.config import FederationConfig
from fedpeft.federated.local_training import LocalClient, LocalResult, train_locally
from fedpeft.federated.observer import Observer
from fedpeft.federated.plan import RunPlan
from fedpeft.federated.records import RoundReport
from fedpeft.federated.run_folder import Progress, RunFolder
from fedpeft.models.dataset import Dataset
from fedpeft.models.evaluation import evaluate
from fedpeft.types import derive_seed, size_bytes, tensor_digest


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
        model: Base model with the adapter injected.
        datasets: Client id → its rows.
        test: Held-out rows.
        plan: Cohorts, weights and noise.
        federation: The run's federation section.
        privacy: The run's privacy section.
        task: What the metrics are.
        max_tokens: Bound on the padded tokens of one physical batch.
        folder: Where the run keeps what must outlive it.
        observer: What watches.
        stop_requested: Asked before each group of clients; the run stops where it can be resumed.
    """

    model: AdaptedModel
    datasets: Mapping[str, Dataset]
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

    def run(self) -> None:
        """Runs every round that is not finished yet.

        Raises:
            Stopped: If it was asked to; everything finished is durable.
            VerificationError: If the adapter never changed.
        """
        with self.folder.exclusively():
            self._run()

    def _run(self) -> None:
        self.aggregator = AGGREGATORS[self.federation.aggregator]
        self.model.set_trainable(self.aggregator.trained_factors)
        self._restore()
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

    def spent_epsilon(self, client_id: str) -> float:
        """Returns what the client has spent, reservations of interrupted attempts included."""
        return epsilon(self.folder.journal.events(client_id), self.privacy.delta)

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
        updates: dict[str, LocalResult] = {}
        for group in self._groups(cohort):
            if self.stop_requested():
                raise Stopped
            updates |= self._group_updates(round_number, group)
        self._drop_diverged(round_number, updates)
        if updates:
            weights = [self.plan.clients[client_id].weight for client_id in updates]
            sent = [result.tensors for result in updates.values()]
            aggregate = self.aggregator.aggregate(self.tensors, sent, weights)
            diagnostics = dict(aggregate.diagnostics)
            norms = {
                client_id: _distance(r.tensors, self.tensors) for client_id, r in updates.items()
            }
            downlink_bytes = len(updates) * size_bytes(self.tensors)
            self.tensors = dict(aggregate.tensors)
        else:
            self._note(f"round {round_number}: no update to aggregate; the adapter is unchanged")
            sent, diagnostics, norms, downlink_bytes = [], {}, {}, 0
        for client_id, result in updates.items():
            self.num_nonfinite[client_id] += result.num_nonfinite
        self.seconds.training += time.monotonic() - started
        last = round_number == self.federation.num_rounds
        evaluated = last or round_number % self.federation.evaluate_every == 0
        metrics = self._evaluate() if evaluated else None
        spent = (
            {c: self.spent_epsilon(c) for c in self.plan.clients} if self.privacy.enabled else {}
        )
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

    def _groups(self, cohort: tuple[str, ...]) -> list[tuple[str, ...]]:
        size = self.federation.clients_at_once or len(cohort)
        return [cohort[start : start + size] for start in range(0, len(cohort), size)]

    def _group_updates(self, round_number: int, group: tuple[str, ...]) -> dict[str, LocalResult]:
        """Reserve, train together, make durable; without those whose budget does not allow it."""
        done = self.folder.load_updates(round_number, group)
        if done is not None:
            for client_id in group:
                if client_id not in done:
                    self._note_sitting_out(round_number, client_id)
            return done
        paid = [client_id for client_id in group if self._reserve(round_number, client_id)]
        results: dict[str, LocalResult] = {}
        if paid:
            label = paid[0] if len(paid) == 1 else f"{len(paid)} clients at once"
            self.observer.client_started(round_number, label, self.federation.local_steps)
            self.model.load(self.tensors)
            trained = train_locally(
                self.model,
                [self._local_client(round_number, client_id) for client_id in paid],
                self.federation,
                max_tokens=self.max_tokens,
                step_finished=lambda step: self.observer.step_finished(label, step),
            )
            results = dict(zip(paid, trained, strict=True))
        self.folder.save_updates(round_number, group, results)
        for client_id in paid:
            spent = self.spent_epsilon(client_id) if self.privacy.enabled else None
            self.observer.client_finished(round_number, client_id, spent)
        return results

    def _local_client(self, round_number: int, client_id: str) -> LocalClient:
        return LocalClient(
            plan=self.plan.clients[client_id],
            dataset=self.datasets[client_id],
            keystream=self._keystream(round_number, client_id),
        )

    def _drop_diverged(self, round_number: int, updates: dict[str, LocalResult]) -> None:
        for client_id, result in list(updates.items()):
            if not all(bool(torch.isfinite(tensor).all()) for tensor in result.tensors.values()):
                del updates[client_id]
                self._note(
                    f"round {round_number}: the update of {client_id} holds NaN or infinite values "
                    "and is left out; lower learning_rate"
                )

    def _reserve(self, round_number: int, client_id: str) -> bool:
        """Charges the client for the round before its first gradient; False where it cannot pay."""
        mechanism = self.plan.clients[client_id].dp
        if mechanism is None:
            return True
        event = mechanism.event(self.federation.local_steps)
        planned = [*self.folder.journal.events(client_id), event]
        if epsilon(planned, self.privacy.delta) > self.privacy.target_epsilon:
            self._note_sitting_out(round_number, client_id)
            return False
        self.folder.journal.reserve(client_id, round_number, event)
        return True

    def _note_sitting_out(self, round_number: int, client_id: str) -> None:
        num_rounds = len(self.folder.journal.events(client_id))
        self._note(
            f"round {round_number}: {client_id} sits out: its {num_rounds} rounds cost epsilon "
            f"{self.spent_epsilon(client_id):.4f}, one more would exceed its budget of "
            f"{self.privacy.target_epsilon:g}"
        )

    def _keystream(self, round_number: int, client_id: str) -> Keystream:
        if self.privacy.enabled and not self.privacy.insecure_seeded_noise:
            return Keystream.from_system()
        seed = derive_seed(self.federation.seed, "coins", round_number, client_id)
        return Keystream.insecure_from_seed(seed)

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
        )
        self.folder.save_round(progress, self.tensors)

    def _note(self, message: str) -> None:
        self.notes.append(message)
        self.observer.note(message)


def _distance(update: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> float:
    return float(
        torch.stack([(t.double() - start[n].double()).square().sum() for n, t in update.items()])
        .sum()
        .sqrt()
    )
