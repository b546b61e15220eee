"""What every aggregator offers: how the cohort's updates become the next adapter."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from fedpeft.federated.aggregators.combiners import WEIGHTED_MEAN, Combiner


@dataclass(frozen=True, kw_only=True)
class Aggregate:
    """The next adapter, and what aggregator and combiner have to say about it, by name.

    Attributes:
        tensors: The next adapter, head included.
        kept: How much of each update went in, from 0 to 1, in the order of the updates; empty where
            nothing is ever left out.
        diagnostics: By name.
    """

    tensors: Mapping[str, Tensor]
    kept: tuple[float, ...] = ()
    diagnostics: Mapping[str, float] = field(default_factory=dict)


class Aggregator(Protocol):
    """One way to make an adapter out of updates, whatever combines them.

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
        combiner: Combiner = WEIGHTED_MEAN,
    ) -> Aggregate:
        """Returns the adapter of the next round.

        Args:
            tensors: The adapter that the cohort started from, head included.
            updates: The trained tensors of each client of the cohort.
            weights: Fixed public weights of the cohort's clients, in the same order; normalised
                here. Never taken from a client.
            combiner: How the updates become one.

        Raises:
            AdapterError: If an update does not fit the adapter, no weight is positive, or the
                combiner needs more updates or equal weights.
        """
