"""A client with a private removal job: a tiny model, a real ledger, marks and a store."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from fedpeft.federated.client_store import ClientStore
from fedpeft.models.base_model import load_base_model, load_tokenizer
from fedpeft.models.model_config import ModelConfig
from fedpeft.unlearning.exported import Frame
from fedpeft.unlearning.order import JobOrder
from fedpeft.unlearning.private_job import PrivateJob
from tests.federated.client_rounds import DELTA, Client, make_client, terms_for

REQUEST = "00000000000000cc"
ASKED = {"epsilon": 8.0, "num_steps": 3, "sampling_prob": 0.5}


@dataclass(kw_only=True)
class Owner:
    """A client whose owner asked for the removal of some of its rows."""

    client: Client
    order: JobOrder
    adapter: bytes
    tensors: dict[str, Tensor]
    told: list[tuple[str, float]] = field(default_factory=list)

    @property
    def store(self) -> ClientStore:
        return ClientStore(self.client.folder / "removals", patience_s=0.2)

    def mark(self, rows: list[int], request: str = REQUEST) -> None:
        self.client.tombstones.add(request, self.client.rows.table.take(rows).records())

    def job(self, **changed: Any) -> PrivateJob:
        """The job, as after a restart."""
        order = changed.pop("order", self.order)
        model = self.client.policy.model_here(
            order.section(ModelConfig, "model"), order.base_digest
        )
        parts: dict[str, Any] = {
            "order": order,
            "adapter": self.adapter,
            "frame": Frame(
                load_base=lambda: load_base_model(model),
                model=model,
                labels=order.labels,
                tokenizer=load_tokenizer(model),
            ),
            "rows": self.client.rows,
            "tombstones": self.client.tombstones,
            "ledger": self.client.ledger,
            "store": self.store,
            "check_noise": self.client.policy.check_private_job,
            "told": lambda phase, share: self.told.append((phase, share)),
            **changed,
        }
        return PrivateJob(**parts)


def make_owner(
    folder: Path,
    model: Path,
    *,
    asked: dict[str, Any] | None = None,
    labels: tuple[str, ...] = ("cold", "warm"),
    marked: tuple[int, ...] = (0, 3, 7),
    **client: Any,
) -> Owner:
    made = make_client(folder, model, **client)
    terms = terms_for(model, task=client.get("task", "classification"))
    tensors = made.adapter(terms)
    data = {"text_column": "text", "label_column": "label", "test": "held by the coordinator"}
    if terms.model.task == "causal-lm":
        data |= {"question_column": "question", "answer_column": "answer"}
    order = JobOrder.model_validate(
        {
            "request_id": REQUEST,
            "run_config": {
                "model": terms.model.model_dump(mode="json"),
                "data": data,
                "adapter": terms.adapter.model_dump(mode="json"),
                "privacy": {"delta": DELTA},
            },
            "base_digest": terms.base_digest,
            "labels": labels if terms.model.task == "classification" else (),
            "method": "loku",
            "num_records": max(1, len(marked)),
            "settings": {"private": ASKED | (asked or {})},
            "seed": 1,
            "guarantee": "charged",
        }
    )
    owner = Owner(client=made, order=order, adapter=bytes(save(tensors)), tensors=tensors)
    if marked:
        owner.mark(list(marked))
    return owner
