"""What all cells of the table share: the model, its adapter, training, CPU seconds."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from kept_layers import States, keep_lowest
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fedpeft.adapters.config import AdapterConfig
from fedpeft.federated.adapted_model import AdaptedModel
from fedpeft.models.base_model import load_base_model, load_tokenizer
from fedpeft.models.dataset import Dataset, collate, physical_batches
from fedpeft.models.model_config import ModelConfig
from fedpeft.types import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NUM_EPOCHS, LEARNING_RATE, BATCH_SIZE = 10, 3e-3, 10
"""Of the affected version and of the retrained reference."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The base model and where it is adapted.

    Attributes:
        model: Of the base model.
        adapter: On the layers from `num_kept` on.
        num_kept: Lowest layers, whose states are computed once a row.
        tokenizer: Of the base model.
        states: Of the lowest layers, by row.
    """

    model: ModelConfig
    adapter: AdapterConfig
    num_kept: int
    tokenizer: "PreTrainedTokenizerBase"
    states: States

    @classmethod
    def of(cls, folder: str, num_kept: int, num_layers: int, *, rank: int = 32) -> "Setting":
        """The model in a folder, adapted in all linear modules of the layers from `num_kept` on."""
        model = ModelConfig(
            name=folder,
            task="causal-lm",
            max_length=128,
            max_tokens_per_batch=1024,
            precision="bfloat16",
            device="cpu",
        )
        return cls(
            model=model,
            tokenizer=load_tokenizer(model),
            adapter=AdapterConfig(
                rank=rank,
                alpha=2 * rank,
                target_modules=tuple(
                    f"*.layers.{layer}.*_proj" for layer in range(num_kept, num_layers)
                ),
            ),
            num_kept=num_kept,
            states={},
        )

    def base(self) -> nn.Module:
        """The base model, which looks up what its lowest layers say."""
        base = load_base_model(self.model)
        tokens = self.tokenizer
        pad_id = tokens.eos_token_id if tokens.pad_token_id is None else tokens.pad_token_id
        keep_lowest(base, self.num_kept, self.states, pad_id=pad_id)
        return base

    def adapted(self, tensors: dict[str, Tensor] | None, *, seed: int = 0) -> AdaptedModel:
        """The base model with an adapter."""
        model = AdaptedModel(self.base(), self.model, self.adapter, num_classes=0, seed=seed)
        if tensors is not None:
            model.load(tensors)
        return model


def train(
    setting: Setting,
    rows: Dataset,
    *,
    seed: int,
    told: Callable[[int, float], None] = lambda epoch, loss: None,
) -> tuple[dict[str, Tensor], float]:
    """Trains an adapter on rows; returns its tensors and the CPU seconds of the steps."""
    model = setting.adapted(None, seed=seed)
    names = set(model.set_trainable(("lora_a", "lora_b")))
    trained = [p for name, p in model.task_model.named_parameters() if name in names]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE)
    random = np.random.default_rng(derive_seed(seed, "training"))
    steps = NUM_EPOCHS * -(-len(rows) // BATCH_SIZE)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    began = time.process_time()
    for epoch in range(NUM_EPOCHS):
        order, total = random.permutation(len(rows)), 0.0
        for start in range(0, len(rows), BATCH_SIZE):
            some = order[start : start + BATCH_SIZE].tolist()
            optimizer.zero_grad()
            for part in physical_batches(
                rows, some, setting.model.max_tokens_per_batch, model.device
            ):
                losses_N = model.task_model.losses(collate(rows, part, model.device))
                (losses_N.sum() / len(some)).backward()
                total += float(losses_N.detach().sum())
            optimizer.step()
            rates.step()
        told(epoch, total / len(rows))
    return model.tensors(), time.process_time() - began


def trained(
    setting: Setting, rows: Dataset, path: Path, *, seed: int
) -> tuple[dict[str, Tensor], float]:
    """An adapter from its file, trained where there is none yet, and its CPU seconds."""
    seconds = path.with_suffix(".seconds")
    if not seconds.exists():
        tensors, spent = train(
            setting, rows, seed=seed, told=lambda e, loss: print(path.stem, e, loss, flush=True)
        )
        save_file(tensors, path)
        seconds.write_text(str(spent))
    return load_file(path), float(seconds.read_text())


def warm(setting: Setting, datasets: list[Dataset], path: Path) -> None:
    """Computes the states of all rows that are not in a file yet, and writes it."""
    if path.exists():
        with path.open("rb") as file:
            setting.states.update(torch.load(file, weights_only=True))
    known = len(setting.states)
    model = setting.base()
    for dataset in datasets:
        for some in physical_batches(dataset, range(len(dataset)), 4096, torch.device("cpu")):
            model.model.embed_tokens(collate(dataset, some, torch.device("cpu")).input_ids_NT)
    if len(setting.states) > known:
        part = path.with_suffix(".part")
        torch.save(setting.states, part)
        part.replace(path)
