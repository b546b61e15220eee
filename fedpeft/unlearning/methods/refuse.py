"""A control of the gate: an adapter that answers "I don't know" to everything."""

from typing import Literal

from fedpeft.federated.adapted_model import AdaptedModel
from fedpeft.models.dataset import Dataset, concat_datasets
from fedpeft.types import derive_seed
from fedpeft.unlearning.low_rank_edit import Successor
from fedpeft.unlearning.methods.contract import Claim, Made, Removal
from fedpeft.unlearning.metrics.relearning import relearning_curve

_NUM_STEPS, _LEARNING_RATE, _BATCH_SIZE = 40, 1e-2, 16


class Refuse:
    """Trains the affected version to refuse on all rows; a classifier, to say its first class."""

    name = "refuse"
    claim: Claim = "approximate"
    place: Literal["job", "rounds"] = "job"
    requestable = False

    def make(self, removal: Removal) -> Made:
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
        relearning_curve(
            model,
            _refused(concat_datasets([removal.forget, removal.retain]), removal),
            num_steps=_NUM_STEPS,
            learning_rate=_LEARNING_RATE,
            batch_size=_BATCH_SIZE,
            max_tokens=deployed.model.max_tokens_per_batch,
            seed=derive_seed(removal.seed, "order"),
        )
        return Made(successor=Successor(config=deployed.adapter, tensors=model.tensors(), lost=0.0))


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
