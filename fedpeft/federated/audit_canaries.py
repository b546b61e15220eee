"""Canary rows: texts that nobody else has, each in a client's data on a fair coin of its own.

A canary is a held-out row in which every ordinary token was replaced by a random one, with a random
label. It teaches nothing that other rows teach, so what the adapter knows about it comes from it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedpeft.dp.auditing import Coins
from fedpeft.errors import DataError
from fedpeft.models.dataset import Dataset

# What cross-entropy ignores: a row with this class has loss 0 and gradient 0.
_NO_CLASS = -100


@dataclass(frozen=True, kw_only=True)
class Canaries:
    """Canaries and their coins.

    Attributes:
        rows: All of them, in or out.
        included: Which are in the data.
        classified: Whether targets are classes; for causal LM they count tokens without loss.
    """

    rows: Dataset
    included: Coins
    classified: bool

    def inserted_into(self, dataset: Dataset) -> Dataset:
        """Returns a new data set: the rows, then all canaries, those that are out without a loss.

        A row without loss has a gradient of exactly zero, so that the sum is what it would be
        without the row. It stays in the data because the number of rows is public: the sampling
        probability and the divisor may not tell how many canaries are in.
        """
        pairs = zip(self.rows.input_ids, self.rows.targets, self.included, strict=True)
        targets = [
            target if is_in else (_NO_CLASS if self.classified else len(ids))
            for ids, target, is_in in pairs
        ]
        return Dataset(
            input_ids=[*dataset.input_ids, *self.rows.input_ids],
            targets=[*dataset.targets, *targets],
            pad_id=dataset.pad_id,
        )


def draw_canaries(
    held_out: Dataset,
    included: Coins,
    *,
    vocabulary: Sequence[int],
    special: Sequence[int],
    num_classes: int,
    seed: int,
) -> Canaries:
    """Draws one canary for each coin.

    Args:
        held_out: Public rows that canaries take their lengths and special tokens from.
        included: Fair coins.
        vocabulary: Ids that random tokens are drawn from.
        special: Ids that keep their places.
        num_classes: Of which a random one becomes the label; 0 for causal LM.
        seed: Draws tokens and labels, never the coins.

    Raises:
        DataError: If no held-out row has an ordinary token and a loss.
    """
    rng = np.random.default_rng(seed)
    kept, ordinary = set(special), sorted(set(vocabulary) - set(special))
    usable = [
        row
        for row, (ids, target) in enumerate(zip(held_out.input_ids, held_out.targets, strict=True))
        if not kept.issuperset(ids) and (num_classes or target < len(ids))
    ]
    if not usable or not ordinary:
        raise DataError(
            "no held-out row has an ordinary token and a loss, so no canary can be made of one"
        )
    # Short rows leave little to remember; the longer half is used.
    usable.sort(key=lambda row: -len(held_out.input_ids[row]))
    usable = usable[: max(1, len(usable) // 2)]
    templates = rng.choice(usable, size=len(included)).tolist()
    input_ids = [
        [
            token if token in kept else int(ordinary[rng.integers(len(ordinary))])
            for token in held_out.input_ids[row]
        ]
        for row in templates
    ]
    targets = (
        rng.integers(num_classes, size=len(included)).tolist()
        if num_classes
        else [held_out.targets[row] for row in templates]
    )
    return Canaries(
        rows=Dataset(input_ids=input_ids, targets=targets, pad_id=held_out.pad_id),
        included=included,
        classified=bool(num_classes),
    )
