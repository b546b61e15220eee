"""FedAvg on both factors (FedIT; Zhang et al., 2024).

The mean of the products is not the product of the means: mean(B)·mean(A) ≠ mean(B·A). The relative
Frobenius error of that step is reported as `aggregation_error` in every round whose result is a
mean of the updates as they were sent.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedpeft.adapters.lora import LORA_A, LORA_B, lora_pairs
from fedpeft.federated.aggregators.combiners import WEIGHTED_MEAN, Combiner
from fedpeft.federated.aggregators.contract import Aggregate
from fedpeft.federated.aggregators.updates import check_updates


class FedAvg:
    """Clients train A and B; the server averages each on its own."""

    name = "fedavg"
    trained_factors: tuple[str, ...] = (LORA_A, LORA_B)

    def aggregate(
        self,
        tensors: Mapping[str, Tensor],
        updates: Sequence[Mapping[str, Tensor]],
        weights: Sequence[float],
        combiner: Combiner = WEIGHTED_MEAN,
    ) -> Aggregate:
        """See `Aggregator.aggregate`."""
        checked = check_updates(tensors, updates, weights, self.trained_factors)
        combined = combiner.combine(checked)
        diagnostics = dict(combined.diagnostics)
        if combined.shares is not None:
            error = aggregation_error(combined.tensors, updates, combined.shares)
            diagnostics["aggregation_error"] = error
        return Aggregate(
            tensors={**tensors, **combined.tensors}, kept=combined.kept, diagnostics=diagnostics
        )


def aggregation_error(
    mean: Mapping[str, Tensor], updates: Sequence[Mapping[str, Tensor]], shares: Sequence[float]
) -> float:
    """Returns ‖mean(B)·mean(A) − mean(B·A)‖ / ‖mean(B·A)‖ over all modules; 0 where both vanish.

    Both are products of stacked factors, whose norms follow from small Gram matrices.
    """
    error = reference = 0.0
    pairs = [lora_pairs(update) for update in updates]
    for module, (mean_a, mean_b) in lora_pairs(mean).items():
        left = [share * pair[module][1] for share, pair in zip(shares, pairs, strict=True)]
        right = [pair[module][0] for pair in pairs]
        reference += _product_norm_squared(left, right)
        error += _product_norm_squared([-mean_b, *left], [mean_a, *right])
    return (error / reference) ** 0.5 if reference > 0 else 0.0


def _product_norm_squared(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    b, a = torch.cat(list(left), 1).double(), torch.cat(list(right), 0).double()
    return float(((b.T @ b) * (a @ a.T)).sum().clamp(min=0))
