"""The weighted mean: every client moves it, and a single one can move it anywhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedpeft.federated.aggregators.combiners.contract import Combined
from fedpeft.federated.aggregators.updates import Updates


@dataclass(frozen=True, kw_only=True)
class WeightedMean:
    """The mean by public weights, as in FedAvg (McMahan et al., 2017)."""

    name = "weighted-mean"
    min_num_updates = 1

    def combine(self, updates: Updates) -> Combined:
        """See `Combiner.combine`."""
        tensors = mean_of(updates.start, updates.sent, updates.shares)
        return Combined(tensors=tensors, shares=tuple(updates.shares))


def mean_of(
    start: Mapping[str, Tensor], sent: Sequence[Mapping[str, Tensor]], shares: Sequence[float]
) -> dict[str, Tensor]:
    """Returns the weighted mean of every tensor, summed in float64, in the types of `start`."""
    return {
        name: sum(
            (share * tensors[name].double() for share, tensors in zip(shares, sent, strict=True)),
            start=torch.zeros_like(origin, dtype=torch.float64),
        ).to(origin.dtype)
        for name, origin in start.items()
    }
