"""A configured run with canaries in it: what did the updates and the adapter give away?

One client's rows get canaries, each on its own coin, in memory only; the federation trains as it
was configured, in a folder that is removed afterwards. Two attackers then guess the coins:

- "updates": sees what the client sent in every round, as the server does, and knows all rows, so
  that it can tell how often each canary was drawn (`audit_updates`);
- "adapter": sees the final adapter only, and scores a canary by how much its loss fell.

Each guesses on the quarter of the canaries with the highest and the quarter with the lowest scores,
a rule that looks at no coin, and each gets half of the error probability, so that the larger of the
two bounds holds with the stated confidence.
"""

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from fedpeft.adapters.config import AdapterConfig
from fedpeft.dp.auditing import Guesses, OneRunBound, Scores, audit_one_run, fair_coins
from fedpeft.dp.config import PrivacyConfig
from fedpeft.dp.randomness import Keystream
from fedpeft.errors import ConfigError, DataError
from fedpeft.federated.assembly import Assembly, assemble, cross_talk
from fedpeft.federated.audit_canaries import Canaries, draw_canaries
from fedpeft.federated.audit_membership import (
    Adapter,
    MembershipReport,
    audit_membership,
    num_scored_rows,
)
from fedpeft.federated.audit_updates import Exchange, UpdateAttack
from fedpeft.federated.config import FederationConfig
from fedpeft.federated.local_training import LocalResult
from fedpeft.federated.observer import Observer
from fedpeft.federated.plan import ClientPlan, RunPlan, plan_run
from fedpeft.federated.run_folder import RunFolder, Update
from fedpeft.federated.simulation import Simulation
from fedpeft.federated.trainer import LocalTrainer
from fedpeft.models.base_model import load_tokenizer
from fedpeft.models.data_config import DataConfig
from fedpeft.models.dataset import Dataset
from fedpeft.models.model_config import ModelConfig
from fedpeft.types import derive_seed

_FEWEST_CANARIES = 20
_DEFAULT_CANARIES = (200, 1000)


class CanaryAttack(BaseModel):
    """One attacker's guesses at the coins."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="What the attacker saw: 'updates' or 'adapter'.")
    bound: OneRunBound = Field(description="What the guesses show, with half the error.")
    scores: tuple[float | None, ...] = Field(
        description="Of each canary; higher means rather in; null where not finite."
    )


class RunAudit(BaseModel):
    """What a configured run gave away about canaries and rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    client_id: str = Field(description="Whose rows got the canaries.")
    num_rows: int = Field(description="Rows of that client, without canaries.")
    num_rounds: int = Field(description="Rounds it took part in.")
    num_steps: int = Field(description="Local steps of all of them.")
    epsilon_upper: float | None = Field(
        description="The claim: what the accountant charged the client; null if privacy is off."
    )
    delta: float = Field(description="The delta of every epsilon here.")
    confidence: float = Field(description="Of the lower bound.")
    epsilon_lower: float = Field(description="The larger of the attacks' bounds.")
    attacks: tuple[CanaryAttack, ...] = Field(description="What each attacker found.")
    included: tuple[bool, ...] = Field(description="Of each canary: whether it was in.")
    membership: tuple[MembershipReport, ...] = Field(
        description="Membership inference on real rows, by the loss of the final adapter."
    )
    failures: tuple[str, ...] = Field(description="Empty where nothing contradicts the claim.")
    notes: tuple[str, ...] = Field(description="What happened during the run.")


class Progress(Protocol):
    """What watches an audit."""

    def stage_started(self, name: str, total: int) -> None:
        """A stage of so many units begins."""

    def stage_advanced(self, count: int) -> None:
        """So many more units are done."""


def audit_run(
    model: ModelConfig,
    data: DataConfig,
    adapter: AdapterConfig,
    federation: FederationConfig,
    privacy: PrivacyConfig,
    progress: Progress,
    *,
    client_id: str | None = None,
    num_canaries: int | None = None,
    confidence: float = 0.95,
) -> RunAudit:
    """Trains the configured run with canaries in one client's rows, and attacks it.

    Args:
        model: The run's model section.
        data: The run's data section.
        adapter: The run's adapter section.
        federation: The run's federation section.
        privacy: The run's privacy section.
        progress: What watches.
        client_id: Whose rows get the canaries. Default: a client that takes part most often, of
            these one with the most rows.
        num_canaries: How many. Default: as many as the client has rows, within 200 to 1000.
        confidence: Of the lower bound and of every interval.

    Raises:
        InputError: If anything in the input cannot be used.
        VerificationError: If the adapter never changed.
    """
    progress.stage_started("loading", 1)
    check_example_level(privacy)
    assembly = assemble(model, data, adapter, federation, privacy)
    progress.stage_advanced(1)
    client_id = choose_client(assembly.plan, client_id)
    rows = assembly.datasets[client_id]
    if num_canaries is None:
        fewest, most = _DEFAULT_CANARIES
        num_canaries = min(most, max(fewest, len(rows)))
    if num_canaries < _FEWEST_CANARIES:
        raise ConfigError(f"an audit needs {_FEWEST_CANARIES} canaries, got {num_canaries}")
    canaries = _draw(assembly, model, federation, privacy, num_canaries)
    datasets = {**assembly.datasets, client_id: canaries.inserted_into(rows)}
    with tempfile.TemporaryDirectory(prefix="fedpeft-audit-") as scratch:
        run = _train(assembly, datasets, client_id, model, federation, privacy, progress, scratch)
    attack = UpdateAttack(
        model=assembly.model,
        canaries=canaries.rows,
        others=rows,
        plan=run.plan,
        federation=federation,
        max_tokens=model.max_tokens_per_batch,
    )
    progress.stage_started("updates", attack.num_rows * len(run.exchanges))
    updates = attack.scores(run.exchanges, progress.stage_advanced)
    final = Adapter(
        model=assembly.model,
        initial=run.initial,
        final=run.final,
        max_tokens=model.max_tokens_per_batch,
    )
    members = {**assembly.datasets}
    total = num_scored_rows(members, assembly.test) + 2 * num_canaries
    progress.stage_started("losses", total)
    scores = {
        "updates": updates,
        "adapter": _without_label_means(
            final.loss_drops(canaries.rows, progress.stage_advanced), canaries
        ),
    }
    membership = audit_membership(
        final,
        members,
        assembly.test,
        delta=privacy.delta,
        confidence=confidence,
        advanced=progress.stage_advanced,
    )
    attacks = tuple(
        CanaryAttack(
            name=name,
            bound=audit_one_run(
                values,
                canaries.included,
                guesses=Guesses.quarters(num_canaries),
                delta=privacy.delta,
                confidence=1 - (1 - confidence) / len(scores),
            ),
            scores=tuple(value if math.isfinite(value) else None for value in values.tolist()),
        )
        for name, values in scores.items()
    )
    lower = max(attack.bound.epsilon_lower for attack in attacks)
    return RunAudit(
        client_id=client_id,
        num_rows=len(rows),
        num_rounds=run.plan.num_rounds,
        num_steps=run.plan.num_steps,
        epsilon_upper=run.spent,
        delta=privacy.delta,
        confidence=confidence,
        epsilon_lower=lower,
        attacks=attacks,
        included=tuple(canaries.included.tolist()),
        membership=membership,
        failures=_failures(lower, run.spent, client_id, confidence),
        notes=tuple(run.notes),
    )


def check_example_level(privacy: PrivacyConfig) -> None:
    """Refuses to audit what these attackers do not attack.

    Raises:
        ConfigError: If the run's privacy is not that of one example.
    """
    if privacy.enabled and privacy.mechanism != "dp-sgd":
        raise ConfigError(
            "an audit attacks example-level privacy, and this run's is client-level; set "
            "privacy.mechanism = 'dp-sgd', or audit a finished adapter with --adapter"
        )


def choose_client(plan: RunPlan, client_id: str | None) -> str:
    """Returns the client to audit.

    Raises:
        DataError: If there is no such client.
        ConfigError: If it takes part in no round.
    """
    clients = plan.clients
    if client_id is None:
        client_id = max(clients, key=lambda c: (clients[c].num_rounds, clients[c].num_examples))
    if client_id not in clients:
        raise DataError(f"there is no client {client_id}; there are {', '.join(clients)}")
    if not clients[client_id].num_rounds:
        raise ConfigError(f"client {client_id} takes part in no round; audit another one")
    return client_id


@dataclass(kw_only=True)
class _Run:
    """What is left of the run: all that an attacker may have seen.

    Attributes:
        plan: The client's, canaries counted.
        exchanges: Of each round that the client took part in.
        initial: The adapter before the first round.
        final: The adapter after the last.
        spent: What the accountant charged the client; None if privacy is off.
        notes: What happened.
    """

    plan: ClientPlan
    exchanges: list[Exchange]
    initial: Mapping[str, Tensor]
    final: Mapping[str, Tensor]
    spent: float | None
    notes: Sequence[str]


class _KeepingFolder(RunFolder):
    """A run's folder that also hands each update to a listener."""

    listener: Callable[[str, LocalResult], None]

    def save_updates(
        self, round_number: int, group: Sequence[str], updates: Mapping[str, Update]
    ) -> None:
        super().save_updates(round_number, group, updates)
        for client_id, update in updates.items():
            self.listener(client_id, update.result)


class _Watcher(Observer):
    """Shows a simulation's steps as one stage of the audit."""

    def __init__(self, progress: Progress, num_steps: int) -> None:
        self._progress, self._num_steps = progress, num_steps

    def run_started(self, **about: object) -> None:
        self._progress.stage_started("training", self._num_steps)

    def step_finished(self, client_id: str, step: int) -> None:
        self._progress.stage_advanced(1)


def _draw(
    assembly: Assembly,
    model: ModelConfig,
    federation: FederationConfig,
    privacy: PrivacyConfig,
    count: int,
) -> Canaries:
    tokenizer = load_tokenizer(model)
    embeddings = assembly.model.task_model.base.get_input_embeddings()  # type: ignore[operator]
    keystream = Keystream.from_system()
    if privacy.insecure_seeded_noise:
        keystream = Keystream.insecure_from_seed(derive_seed(federation.seed, "audit coins"))
    return draw_canaries(
        assembly.test,
        fair_coins(count, keystream),
        vocabulary=range(min(len(tokenizer), embeddings.num_embeddings)),
        special=tokenizer.all_special_ids,
        num_classes=len(assembly.labels),
        seed=derive_seed(federation.seed, "audit canaries"),
    )


def _train(
    assembly: Assembly,
    datasets: Mapping[str, Dataset],
    client_id: str,
    model: ModelConfig,
    federation: FederationConfig,
    privacy: PrivacyConfig,
    progress: Progress,
    scratch: str,
) -> _Run:
    # Evaluation between rounds changes nothing but the time that it takes.
    federation = federation.model_copy(update={"evaluate_every": federation.num_rounds})
    # Its updates are seen by the audit alone: they are charged to a ledger that goes with them.
    privacy = privacy.model_copy(update={"ledger": None})
    sizes = {client: len(rows) for client, rows in datasets.items()}
    plan = plan_run(sizes, federation, privacy, cross_talk=cross_talk(model))
    folder = _KeepingFolder.create(Path(scratch, "run"), {})
    assert isinstance(folder, _KeepingFolder)
    at_once = federation.clients_at_once
    groups = [math.ceil(len(cohort) / at_once) for cohort in plan.cohorts]
    simulation = Simulation(
        run_id="audit",
        model=assembly.model,
        trainer=LocalTrainer(
            assembly.model,
            datasets,
            plan.clients,
            federation,
            max_tokens=model.max_tokens_per_batch,
        ),
        rows=assembly.rows,
        test=assembly.test,
        plan=plan,
        federation=federation,
        privacy=privacy,
        task=model.task,
        max_tokens=model.max_tokens_per_batch,
        folder=folder,
        observer=_Watcher(progress, sum(groups) * federation.local_steps),
    )
    exchanges: list[Exchange] = []

    def keep(sender: str, result: LocalResult) -> None:
        if sender == client_id:
            exchanges.append((simulation.tensors, result.tensors))

    folder.listener = keep
    initial = assembly.model.tensors()
    simulation.run()
    return _Run(
        plan=plan.clients[client_id],
        exchanges=exchanges,
        initial=initial,
        final=simulation.tensors,
        spent=simulation.statements[client_id].epsilon if privacy.enabled else None,
        notes=simulation.notes,
    )


def _without_label_means(scores: Scores, canaries: Canaries) -> Scores:
    """Canaries of one label move together, whoever is in; what is left is their own."""
    if not canaries.classified:
        return scores
    own = scores.copy()
    labels = np.array(canaries.rows.targets)
    for label in np.unique(labels):
        own[labels == label] -= np.nanmean(scores[labels == label])
    return own


def _failures(
    lower: float, claimed: float | None, client_id: str, confidence: float
) -> tuple[str, ...]:
    if claimed is None or lower <= claimed:
        return ()
    return (
        f"canaries in the run: the epsilon of client {client_id} is at least {lower:.3f} with "
        f"confidence {confidence:g}, the accountant claims {claimed:.3f}",
    )
