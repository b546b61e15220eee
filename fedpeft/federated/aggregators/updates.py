"""A round's updates, checked against the adapter that the cohort started from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedpeft.adapters.lora import LORA_A, LORA_B
from fedpeft.errors import AdapterError
from fedpeft.types import is_finite

_FACTORS = (LORA_A, LORA_B)


@dataclass(frozen=True, kw_only=True)
class Updates:
    """What `check_updates` let pass; nothing else is ever combined.

    Attributes:
        start: The trained tensors that the cohort started from.
        sent: The same tensors of each client after its local steps: same names and shapes, finite.
        shares: Public weight of each client, positive; they sum to one.
    """

    start: Mapping[str, Tensor]
    sent: Sequence[Mapping[str, Tensor]]
    shares: Sequence[float]

    def __len__(self) -> int:
        return len(self.sent)

    def stacked(self, name: str) -> Tensor:
        """Returns one tensor of all clients in float64, shape (N, *shape)."""
        return torch.stack([tensors[name].double() for tensors in self.sent])


def check_updates(
    tensors: Mapping[str, Tensor],
    updates: Sequence[Mapping[str, Tensor]],
    weights: Sequence[float],
    trained_factors: Sequence[str],
) -> Updates:
    """Returns the updates, if they can be combined.

    Args:
        tensors: The adapter that the cohort started from, head included.
        updates: The trained tensors of each client of the cohort.
        weights: Fixed public weights of the cohort's clients, in the same order.
        trained_factors: The LoRA factors that clients train; the head may go with them.

    Raises:
        AdapterError: If there is no update, one does not hold exactly the trained tensors in the
            shapes of `tensors`, a value is not finite in their type, or the weights are not
            positive.
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
            if not is_finite(update[name].to(tensors[name].dtype)):
                raise AdapterError(f"{name}: an update holds NaN or infinite values")
    start = {name: tensor for name, tensor in tensors.items() if name in names}
    return Updates(start=start, sent=updates, shares=shares)


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


def update_norm(start: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> float:
    """Returns the L2 norm over all tensors of what one client changed."""
    squares = [(tensors[n].double() - start[n].double()).square().sum() for n in sorted(tensors)]
    return float(torch.stack(squares).sum().sqrt())
