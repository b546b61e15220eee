"""FedSVD (NeurIPS 2025): average B, then make A the right singular vectors of the average update.

Refactorizing rotates A inside the row space that it began in, so under SGD it equals a frozen
orthonormal A; the initial subspace is what decides. It is post-processing of noised values and
spends no epsilon.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from fedpeft.adapters.lora import LORA_A, LORA_B, lora_pairs
from fedpeft.federated.aggregators.combiners import WEIGHTED_MEAN, Combiner
from fedpeft.federated.aggregators.contract import Aggregate
from fedpeft.federated.aggregators.refactorize import refactorize_svd
from fedpeft.federated.aggregators.updates import check_updates


class FedSvd:
    """Clients train B; the server averages it and refactorizes the product."""

    name = "fedsvd"
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
        merged = {**tensors, **combined.tensors}
        for module, (lora_a, lora_b) in lora_pairs(merged).items():
            a, b = refactorize_svd(lora_a, lora_b)
            merged[f"{module}.{LORA_A}"], merged[f"{module}.{LORA_B}"] = a, b
        return Aggregate(tensors=merged, kept=combined.kept, diagnostics=combined.diagnostics)
