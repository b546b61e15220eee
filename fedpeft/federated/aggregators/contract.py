"""What every aggregator offers: how the cohort's updates become the next adapter."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from fedpeft.errors import AdapterError


@dataclass(frozen=True, kw_only=True)
class Aggregate:
    """The next adapter, and what the aggregator has to say about it, by name."""

    tensors: Mapping[str, Tensor]
    diagnostics: Mapping[str, float] = field(default_factory=dict)


class Aggregator(Protocol):
    """One way to make an adapter out of updates.

    `trained_factors` are the LoRA factors that clients train and send; the head, where it is
    trained, always goes with them.
    """

    name: str
    trained_factors: tuple[str, ...]

    def aggregate(
        self,
        tensors: Mapping[str, Tensor],
        updates: Sequence[Mapping[str, Tensor]],
        weights: Sequence[float],
    ) -> Aggregate:
        """Returns the adapter of the next round.

        Args:
            tensors: The adapter that the cohort started from, head included.
            updates: The trained tensors of each client of the cohort.
            weights: Fixed public weights of the cohort's clients, in the same order; normalised
                here. Never taken from a client.

        Raises:
            AdapterError: If an update does not fit the adapter, or no weight is positive.
        """


def weighted_mean(
    updates: Sequence[Mapping[str, Tensor]], weights: Sequence[float]
) -> dict[str, Tensor]:
    """Returns the weighted mean of every tensor, computed in float64, in the updates' dtype.

    Raises:
        AdapterError: If there is no update, names or shapes differ, a value is not finite, or the
            weights are not positive.
    """
    shares = normalised(weights, len(updates))
    first = updates[0]
    for update in updates:
        if {n: t.shape for n, t in update.items()} != {n: t.shape for n, t in first.items()}:
            raise AdapterError("the cohort's updates differ in names or shapes")
        if not all(bool(torch.isfinite(tensor).all()) for tensor in update.values()):
            raise AdapterError("an update holds NaN or infinite values")
    return {
        name: sum(
            (share * update[name].double() for share, update in zip(shares, updates, strict=True)),
            start=torch.zeros_like(first[name], dtype=torch.float64),
        ).to(first[name].dtype)
        for name in first
    }


def normalised(weights: Sequence[float], count: int) -> list[float]:
    """Returns the weights divided by their sum.

    Raises:
        AdapterError: If there are none, or one is not positive and finite.
    """
    if count == 0 or len(weights) != count:
        raise AdapterError(f"expected a weight for each of {count} updates, got {len(weights)}")
    total = sum(weights)
    if not all(0 < weight < float("inf") for weight in weights):
        raise AdapterError(f"weights must be positive and finite, got {list(weights)}")
    return [weight / total for weight in weights]
