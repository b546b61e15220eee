"""FFA-LoRA (Sun et al., 2024): A stays as it was drawn, B is averaged."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from fedpeft.adapters.lora import LORA_B
from fedpeft.federated.aggregators.combiners import WEIGHTED_MEAN, Combiner
from fedpeft.federated.aggregators.contract import Aggregate
from fedpeft.federated.aggregators.updates import check_updates


class FfaLora:
    """Clients train B; the server averages it."""

    name = "ffa-lora"
    trained_factors: tuple[str, ...] = (LORA_B,)

    def aggregate(
        self,
        tensors: Mapping[str, Tensor],
        updates: Sequence[Mapping[str, Tensor]],
        weights: Sequence[float],
        combiner: Combiner = WEIGHTED_MEAN,
    ) -> Aggregate:
        """See `Aggregator.aggregate`."""
        combined = combiner.combine(check_updates(tensors, updates, weights, self.trained_factors))
        return Aggregate(
            tensors={**tensors, **combined.tensors},
            kept=combined.kept,
            diagnostics=combined.diagnostics,
        )
