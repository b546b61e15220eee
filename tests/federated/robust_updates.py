"""Made-up rounds for the tests of combiners."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedpeft.federated.aggregators.combiners import (
    Combiner,
    Median,
    MultiKrum,
    NormBound,
    TrimmedMean,
    WeightedMean,
)
from fedpeft.federated.aggregators.updates import Updates, check_updates

SHAPES = {"base.query.lora_b": (7, 3), "base.value.lora_b": (4, 3), "head.bias": (2,)}
NUM_VALUES = 35

# One of each, with parameters that have an effect on what `round_of` makes.
COMBINERS: dict[str, Combiner] = {
    combiner.name: combiner
    for combiner in (
        WeightedMean(),
        NormBound(max_update_norm=5.0),
        Median(),
        TrimmedMean(num_byzantine=1),
        MultiKrum(num_byzantine=1),
    )
}
COUNT_CLIENTS = {"median", "trimmed-mean", "multi-krum"}


def shaped(vector: Tensor) -> dict[str, Tensor]:
    """One vector of NUM_VALUES cut into tensors of SHAPES."""
    sizes = [torch.Size(shape).numel() for shape in SHAPES.values()]
    parts = vector.split(sizes)
    return {name: part.reshape(SHAPES[name]) for name, part in zip(SHAPES, parts, strict=True)}


def flat(tensors: Mapping[str, Tensor]) -> Tensor:
    """All values of the trained tensors in one float64 vector."""
    return torch.cat([tensors[name].flatten() for name in SHAPES]).double()


def vectors(count: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random rows, one a client."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, NUM_VALUES, generator=draw, dtype=torch.float64).to(dtype)


def round_of(
    sent: Tensor, start: Tensor | None = None, weights: Sequence[float] | None = None
) -> Updates:
    """A round whose clients sent the rows of `sent`, from `start` or zero."""
    origin = shaped(torch.zeros_like(sent[0]) if start is None else start)
    # A is frozen here: it is no part of what is combined.
    adapter = {**origin, "base.query.lora_a": torch.ones(3, 5), "base.value.lora_a": torch.ones(3)}
    rows = [shaped(row.clone()) for row in sent]
    return check_updates(adapter, rows, weights or [1.0] * len(rows), ["lora_b"])
