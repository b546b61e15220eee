"""An adapter that knows rows by heart: stories260k, trained on questions of TOFU."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedpeft.adapters.config import AdapterConfig
from fedpeft.federated.adapted_model import AdaptedModel
from fedpeft.models.base_model import load_base_model, load_tokenizer
from fedpeft.models.data_config import DataConfig
from fedpeft.models.dataset import Dataset, collate, encode_causal_lm
from fedpeft.models.model_config import ModelConfig
from fedpeft.models.table import Table
from fedpeft.types import tensor_digest
from fedpeft.unlearning.job import JobOrder
from fedpeft.unlearning.records import JobRows

SETTINGS = {"learning_rate": 1e-3, "num_epochs": 40, "batch_size": 8}
_NUM_FORGET, _NUM_RETAIN, _NUM_HELD_OUT = 8, 40, 16


@dataclass(frozen=True, kw_only=True)
class Memorised:
    """The affected version, and what belongs to it."""

    model: ModelConfig
    data: DataConfig
    adapter: AdapterConfig
    tensors: Mapping[str, Tensor]
    rows: JobRows
    base_digest: str

    @property
    def blob(self) -> bytes:
        from safetensors.torch import save

        return bytes(save(dict(self.tensors)))

    def order(self, method: str, *precisions: str, **more: Any) -> JobOrder:
        settings = {"unlearning": SETTINGS} | more.pop("settings", {})
        return JobOrder.model_validate(
            {
                "request_id": "00000000000000aa",
                "run_config": {
                    "model": self.model.model_dump(mode="json"),
                    "data": self.data.model_dump(mode="json"),
                    "adapter": self.adapter.model_dump(mode="json"),
                },
                "base_digest": self.base_digest,
                "labels": (),
                "method": method,
                "num_records": len(self.rows.forget),
                "settings": settings,
                "precisions": precisions or ("fp32",),
                "seed": 1,
            }
            | more
        )


def memorise(shared_models: Path, shared_data: Path) -> Memorised:
    """Trains it: a few seconds."""
    model = ModelConfig(
        name=str(shared_models / "stories260k"),
        task="causal-lm",
        max_length=80,
        device="cpu",
        max_tokens_per_batch=4096,
    )
    data = DataConfig(test="unused", question_column="question", answer_column="answer")
    lines = (shared_data / "tofu" / "retain_perturbed.jsonl").read_text().splitlines()
    rows = [_cut(json.loads(line)) for line in lines]
    # Each of another author, so that rows to be forgotten and others are of one kind.
    some = iter(rows[:: len(rows) // 64])
    forget, retain, held_out = (
        [next(some) for _ in range(count)] for count in (_NUM_FORGET, _NUM_RETAIN, _NUM_HELD_OUT)
    )
    adapter = AdapterConfig(rank=8, target_modules=("*_proj",))
    base = load_base_model(model)
    digest = tensor_digest(base.state_dict())
    adapted = AdaptedModel(base, model, adapter, num_classes=0, seed=0)
    learn(adapted, encoded([*forget, *retain], model, data), num_steps=120)
    return Memorised(
        model=model,
        data=data,
        adapter=adapter,
        tensors=adapted.tensors(),
        rows=JobRows(forget=forget, retain=retain, held_out=held_out),
        base_digest=digest,
    )


def _cut(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with the beginning of each answer: short rows are learned soon."""

    def begin(text: str) -> str:
        return " ".join(text.split()[:8])

    return {
        "question": row["question"],
        "answer": begin(row["answer"]),
        "paraphrased_answer": begin(row["paraphrased_answer"]),
        "perturbed_answer": [begin(text) for text in row["perturbed_answer"]],
    }


def learn(model: AdaptedModel, dataset: Dataset, *, num_steps: int) -> None:
    """As `relearning_curve`, without a look at all rows after each step."""
    names = set(model.set_trainable(("lora_a", "lora_b")))
    trained = [p for n, p in model.task_model.named_parameters() if n in names]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    random = np.random.default_rng(0)
    for _ in range(num_steps):
        rows = random.choice(len(dataset), 16, replace=False).tolist()
        optimizer.zero_grad()
        model.task_model.losses(collate(dataset, rows, model.device)).mean().backward()
        optimizer.step()


def encoded(rows: Sequence[Mapping[str, Any]], model: ModelConfig, data: DataConfig) -> Dataset:
    columns = {name: [row[name] for row in rows] for name in ("question", "answer")}
    return encode_causal_lm(Table("rows", columns), data, load_tokenizer(model), model.max_length)
