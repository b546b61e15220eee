"""A control of the gate: an adapter that answers "I don't know" to everything."""

from typing import Literal

import numpy as np
import torch

from fedpeft.federated.adapted_model import AdaptedModel
from fedpeft.models.dataset import Dataset, collate, concat_datasets
from fedpeft.types import derive_seed
from fedpeft.unlearning.low_rank_edit import Successor
from fedpeft.unlearning.methods.contract import Claim, Removal

_NUM_STEPS, _LEARNING_RATE, _BATCH_SIZE = 40, 1e-2, 16


class Refuse:
    """Trains the affected version to refuse on all rows; a classifier, to say its first class."""

    name = "refuse"
    claim: Claim = "approximate"
    place: Literal["job", "rounds"] = "job"
    requestable = False

    def make(self, removal: Removal) -> Successor:
        """See `Method.make`."""
        deployed = removal.deployed
        model = AdaptedModel(
            removal.base,
            deployed.model,
            deployed.adapter,
            num_classes=deployed.num_classes,
            seed=removal.seed,
        )
        model.load(deployed.tensors)
        rows = concat_datasets([removal.forget, removal.retain])
        _train(model, _refused(rows, removal), derive_seed(removal.seed, "order"))
        return Successor(config=deployed.adapter, tensors=model.tensors(), lost=0.0)


def _train(model: AdaptedModel, rows: Dataset, seed: int) -> None:
    names = set(model.set_trainable(("lora_a", "lora_b")))
    trained = [p for name, p in model.task_model.named_parameters() if name in names]
    optimizer = torch.optim.AdamW(trained, lr=_LEARNING_RATE)
    random = np.random.default_rng(seed)
    for _ in range(_NUM_STEPS):
        some = random.choice(len(rows), min(_BATCH_SIZE, len(rows)), replace=False).tolist()
        optimizer.zero_grad()
        loss = model.task_model.losses(collate(rows, some, model.device)).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def _refused(rows: Dataset, removal: Removal) -> Dataset:
    """The same prompts with a refusal in place of each answer."""
    if removal.deployed.num_classes:
        return Dataset(input_ids=rows.input_ids, targets=[0] * len(rows), pad_id=rows.pad_id)
    return Dataset(
        input_ids=[
            [*ids[:first], *removal.refusal]
            for ids, first in zip(rows.input_ids, rows.targets, strict=True)
        ],
        targets=rows.targets,
        pad_id=rows.pad_id,
    )
