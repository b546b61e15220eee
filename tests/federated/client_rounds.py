"""A client with a tiny model, a real ledger and a folder, and terms and plans for it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedpeft.dp.randomness import Keystream
from fedpeft.federated.client_round import ClientRound
from fedpeft.federated.client_rows import ClientRows
from fedpeft.federated.client_store import ClientStore
from fedpeft.federated.messages import RoundPlan
from fedpeft.federated.terms import RunTerms
from fedpeft.federated.tombstones import Tombstones
from fedpeft.ledger import Ledger
from fedpeft.models.base_model import load_base_model
from fedpeft.models.model_config import ModelConfig
from fedpeft.models.sources import read_table
from fedpeft.types import tensor_digest
from fedpeft_client.policy import AllowedModel, ClientPolicy
from fedpeft_client.workplace import ClientWorkplace, Models
from tests.tiny_models import write_rows

CLIENT = "clinic"
RUN = "0123456789abcdef"
DELTA = 0.02
NUM_ROWS = 12
PLAN_DIGEST = "ab" * 32


class Notes:
    """A watcher that keeps what it is told and does something at a step."""

    def __init__(self, at_step: Callable[[int], None] = lambda step: None) -> None:
        self.notes: list[str] = []
        self.num_steps = 0
        self._at_step = at_step

    def note(self, message: str) -> None:
        self.notes.append(message)

    def step_finished(self, step: int, num_steps: int) -> None:
        self.num_steps += 1
        self._at_step(step)


def base_digest(model: Path, task: str = "classification") -> str:
    config = ModelConfig.model_validate({"name": str(model), "task": task, "device": "cpu"})
    return tensor_digest(load_base_model(config).state_dict())


def terms_for(base: Path, *, task: str = "classification", **sections: Any) -> RunTerms:
    """Three rounds of two private steps, unless told otherwise; sections are merged."""
    causal = task == "causal-lm"
    content: dict[str, Any] = {
        "run_id": RUN,
        "name": "test",
        "model": {
            # A coordinator's own place, which means nothing to a client.
            "name": "/somewhere/else",
            "task": task,
            "max_length": 24,
            "max_tokens_per_batch": 64,
        },
        "adapter": {"rank": 4, "target_modules": ["q_proj"] if causal else ["query", "value"]},
        "federation": {
            "clients": "remote",
            "num_rounds": 3,
            "local_steps": 2,
            "expected_batch_size": 5,
            "learning_rate": 0.5,
        },
        "privacy": {"target_epsilon": 4.0, "delta": DELTA},
        "columns": {
            "text": "text",
            "label": "label",
            "question": "question" if causal else None,
            "answer": "answer" if causal else None,
        },
        "labels": [] if causal else ["cold", "warm"],
        "base_digest": base_digest(base, task),
    }
    for name, section in sections.items():
        content[name] = {**content[name], **section} if isinstance(section, Mapping) else section
    return RunTerms.model_validate(content)


def policy_for(model: Path, *, task: str = "classification", **fields: Any) -> ClientPolicy:
    models = {base_digest(model, task): AllowedModel(name=str(model))}
    return ClientPolicy.model_validate({"device": "cpu", "base_models": models, **fields})


def plan_for(terms: RunTerms, tensors: Mapping[str, Tensor], **fields: Any) -> RoundPlan:
    plan = RoundPlan(
        terms=terms,
        client_id=CLIENT,
        round=1,
        adapter_digest=tensor_digest(tensors),
        num_examples=NUM_ROWS,
        expected_batch_size=5.0,
        num_rounds=3,
        noise_multiplier=1.5 if terms.privacy.enabled else None,
    )
    return replace(plan, **fields)


def first_adapter(terms: RunTerms, policy: ClientPolicy) -> dict[str, Tensor]:
    """The run's, with B and head moved off zero so that everything has a gradient."""
    model, _ = Models(policy).for_run(terms)
    generator = torch.Generator().manual_seed(3)
    return {
        name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in model.tensors().items()
    }


@dataclass(kw_only=True)
class Client:
    """All that a client is; `round()` makes the half that answers, as after a restart."""

    folder: Path
    policy: ClientPolicy
    ledger: Ledger
    rows: ClientRows
    models: Models
    notes: Notes = field(default_factory=Notes)
    coins: Callable[[], Keystream] = Keystream.from_system

    @property
    def store(self) -> ClientStore:
        return ClientStore(self.folder / "updates", patience_s=0.2)

    @property
    def tombstones(self) -> Tombstones:
        return Tombstones(self.folder / "tombstones")

    def round(self, **changed: Any) -> ClientRound:
        parts: dict[str, Any] = {
            "client_id": CLIENT,
            "policy": self.policy,
            "workplace": ClientWorkplace(
                self.rows,
                self.models,
                tombstones=self.tombstones,
                max_tokens=64,
                note=self.notes.note,
            ),
            "ledger": self.ledger,
            "store": self.store,
            "watcher": self.notes,
            "coins": self.coins,
            **changed,
        }
        return ClientRound(**parts)

    def adapter(self, terms: RunTerms) -> dict[str, Tensor]:
        return first_adapter(terms, self.policy)

    def spent(self) -> float:
        return self.ledger.spent_epsilon(self.rows.dataset, DELTA)

    def num_reservations(self) -> int:
        return len(self.ledger.reservations(self.rows.dataset))


def make_client(
    folder: Path,
    model: Path,
    *,
    budget: float | None = 20.0,
    num_rows: int = NUM_ROWS,
    policy: Mapping[str, Any] | None = None,
    task: str = "classification",
) -> Client:
    folder.mkdir(parents=True, exist_ok=True)
    table = read_table(str(write_rows(folder / "rows.jsonl", num_rows, seed=1)), [])
    # Made again it is the same client: the same rows, the same ledger.
    ledger = Ledger.open(folder / "ledger.db")
    dataset = ledger.register(table.records())
    if budget is not None:
        ledger.set_budget(dataset, epsilon=budget, delta=DELTA)
    allowed = policy_for(model, task=task, **(policy or {}))
    return Client(
        folder=folder,
        policy=allowed,
        ledger=ledger,
        rows=ClientRows(table=table, dataset=dataset, columns=tuple(table.columns)),
        models=Models(allowed),
    )
