"""FFA-LoRA (Sun et al., 2024): A stays as it was drawn, B is averaged."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from fedpeft.adapters.lora import LORA_B
from fedpeft.federated.aggregators.contract import Aggregate, weighted_mean


class FfaLora:
    """Clients train B; the server averages it."""

    name = "ffa-lora"
    trained_factors: tuple[str, ...] = (LORA_B,)

    def aggregate(
        self,
        tensors: Mapping[str, Tensor],
        updates: Sequence[Mapping[str, Tensor]],
        weights: Sequence[float],
    ) -> Aggregate:
        """See `Aggregator.aggregate`."""
        mean = weighted_mean(tensors, updates, weights, self.trained_factors)
        return Aggregate(tensors=dict(tensors) | mean)
