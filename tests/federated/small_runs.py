"""Whole simulations of tiny models, started and resumed as `fedpeft.simulate` does it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fedpeft.config import RunConfig
from fedpeft.dp.events import PrivacyEvent
from fedpeft.federated.assembly import Assembly, assemble
from fedpeft.federated.run_folder import RunFolder
from fedpeft.federated.simulation import Simulation
from fedpeft.federated.trainer import LocalTrainer
from fedpeft.ledger import Ledger
from fedpeft.types import tensor_digest
from fedpeft.workers import RayTrainer, RayWorkers, WorkersConfig
from tests.tiny_models import write_rows

SEEDED = {"target_epsilon": 4.0, "delta": 0.02, "insecure_seeded_noise": True}
SECRET = {"target_epsilon": 4.0, "delta": 0.02}
OFF = {"enabled": False}


class Watcher:
    """An observer that keeps what it is told and may raise at one of the events."""

    def __init__(self, crash_at: int | None = None) -> None:
        self.events: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self._crash_at = crash_at

    def __getattr__(self, name: str) -> Callable[..., None]:
        def record(*args: Any, **kwargs: Any) -> None:
            if len(self.events) == self._crash_at:
                raise Crash(name)
            self.events.append((name, args, kwargs))

        return record

    def named(self, name: str) -> list[tuple[Any, ...]]:
        return [args for found, args, _ in self.events if found == name]


class Crash(BaseException):
    """Nothing in the run may catch it."""


@dataclass(frozen=True, kw_only=True)
class SmallRun:
    """A configuration and a folder."""

    config: RunConfig
    folder: Path
    prepare: Callable[[Assembly], object] = field(default=lambda assembly: None)

    def assemble(self) -> Assembly:
        config = self.config
        assembly = assemble(
            config.model, config.data, config.adapter, config.federation, config.privacy
        )
        self.prepare(assembly)
        return assembly

    def simulation(
        self,
        *,
        watcher: Watcher | None = None,
        workers: WorkersConfig | None = None,
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> Simulation:
        """A new simulation with a new model: the first makes the folder, others resume in it."""
        if (self.folder / "run.json").exists():
            folder, _ = RunFolder.reopen(self.folder)
        else:
            folder = RunFolder.create(self.folder, {})
        assembly = self.assemble()
        trainer = (
            RayTrainer(
                RayWorkers(self.config, workers), assembly, self.config.federation.local_steps
            )
            if workers
            else LocalTrainer(
                assembly.model,
                assembly.datasets,
                assembly.plan.clients,
                self.config.federation,
                max_tokens=self.config.model.max_tokens_per_batch,
            )
        )
        return Simulation(
            run_id=self.folder.name,
            model=assembly.model,
            trainer=trainer,
            rows=assembly.rows,
            test=assembly.test,
            plan=assembly.plan,
            federation=self.config.federation,
            privacy=self.config.privacy,
            task=self.config.model.task,
            max_tokens=self.config.model.max_tokens_per_batch,
            folder=folder,
            observer=watcher or Watcher(),
            stop_requested=stop_requested,
        )

    def finished(self, **kwargs: Any) -> Simulation:
        simulation = self.simulation(**kwargs)
        simulation.run()
        return simulation


def run_config(
    model: Path,
    scratch: Path,
    *,
    privacy: Mapping[str, object] = OFF,
    task: str = "classification",
    model_fields: Mapping[str, object] | None = None,
    adapter: Mapping[str, object] | None = None,
    num_rows: int = 30,
    partition: Mapping[str, object] | None = None,
    **federation: object,
) -> RunConfig:
    """Three clients of ten rows, two rounds of two steps, unless told otherwise."""
    scratch.mkdir(parents=True, exist_ok=True)
    train = write_rows(scratch / "train.jsonl", num_rows, seed=1)
    test = write_rows(scratch / "test.jsonl", 16, seed=2)
    data: dict[str, object] = {"train": str(train), "test": str(test), **(partition or {})}
    patterns: tuple[str, ...] = ("query", "value")
    if task == "causal-lm":
        data |= {"question_column": "question", "answer_column": "answer"}
        patterns = ()
    rounds = {"num_clients": 3, "num_rounds": 2, "local_steps": 2, "learning_rate": 0.5}
    rounds |= {"clients_at_once": 1}
    batches = {} if "sampling_prob" in federation else {"expected_batch_size": 5}
    return RunConfig.model_validate(
        {
            "model": {
                "name": str(model),
                "task": task,
                "max_length": 24,
                "max_tokens_per_batch": 64,
                "device": "cpu",
                **(model_fields or {}),
            },
            "data": data,
            "adapter": {"rank": 4, "target_modules": patterns, **(adapter or {})},
            "federation": rounds | batches | federation,
            "privacy": dict(privacy),
        }
    )


def outcome(simulation: Simulation) -> dict[str, Any]:
    """All that a run leaves, apart from wall-clock seconds."""
    return {
        "digest": tensor_digest(simulation.tensors),
        "initial": simulation.initial_metrics,
        "records": [record.model_dump(exclude={"seconds"}) for record in simulation.records],
        "num_nonfinite": simulation.num_nonfinite,
        "notes": simulation.notes,
        "statements": simulation.statements,
        "events": charged(simulation.folder.ledger),
    }


def charged(ledger: Path) -> dict[str, list[PrivacyEvent]]:
    """Client id → what its rows were charged for, oldest first; empty where there is no ledger."""
    if not ledger.exists():
        return {}
    with Ledger.open(ledger, read_only=True) as opened:
        return {
            balance.owner: [r.event for r in opened.reservations(balance.fingerprint)]
            for balance in opened.balances()
        }


def stop_after(num_clients: int) -> Callable[[], bool]:
    """Asks to stop when that many clients were let pass."""
    asked = -1

    def stop_requested() -> bool:
        nonlocal asked
        asked += 1
        return asked >= num_clients

    return stop_requested


def as_float64(assembly: Assembly) -> None:
    assembly.model.task_model.to(torch.float64)
