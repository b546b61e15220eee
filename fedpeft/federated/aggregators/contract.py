"""What every aggregator offers: how the cohort's updates become the next adapter."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from fedpeft.adapters.lora import LORA_A, LORA_B
from fedpeft.errors import AdapterError

_FACTORS = (LORA_A, LORA_B)


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
    tensors: Mapping[str, Tensor],
    updates: Sequence[Mapping[str, Tensor]],
    weights: Sequence[float],
    trained_factors: Sequence[str],
) -> dict[str, Tensor]:
    """Returns the weighted mean of every trained tensor, computed in float64, in the own dtype.

    Raises:
        AdapterError: If there is no update, one does not hold exactly the trained tensors in the
            shapes of `tensors`, a value is not finite, or the weights are not positive.
    """
    shares = normalised(weights, len(updates))
    trained = {n for n in tensors if n.endswith(tuple(f".{factor}" for factor in trained_factors))}
    head = {n for n in tensors if n.rpartition(".")[2] not in _FACTORS}
    names = trained | head if head & updates[0].keys() else trained
    for update in updates:
        if update.keys() != names:
            wrong = sorted(update.keys() ^ names)
            raise AdapterError(
                f"an update must hold the {len(names)} trained tensors; {len(wrong)} are missing "
                f"or unknown: {wrong[:3]}"
            )
        for name in names:
            if update[name].shape != tensors[name].shape:
                raise AdapterError(
                    f"{name}: expected shape {tuple(tensors[name].shape)}, an update has "
                    f"{tuple(update[name].shape)}"
                )
            if not torch.isfinite(update[name]).all():
                raise AdapterError(f"{name}: an update holds NaN or infinite values")
    return {
        name: sum(
            (share * update[name].double() for share, update in zip(shares, updates, strict=True)),
            start=torch.zeros_like(tensors[name], dtype=torch.float64),
        ).to(tensors[name].dtype)
        for name in tensors
        if name in names
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
