"""Frozen orthonormal A: the baseline that FedSVD must be compared with."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from fedpeft.adapters.lora import LORA_A, LORA_B, lora_pairs
from fedpeft.federated.aggregators.combiners import WEIGHTED_MEAN, Combiner
from fedpeft.federated.aggregators.contract import Aggregate
from fedpeft.federated.aggregators.refactorize import is_orthonormal, refactorize_qr
from fedpeft.federated.aggregators.updates import check_updates


class FrozenOrthonormal:
    """Clients train B; A is made orthonormal once, after the first round at the latest."""

    name = "frozen-orthonormal"
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
            if not is_orthonormal(lora_a):
                a, b = refactorize_qr(lora_a, lora_b)
                merged[f"{module}.{LORA_A}"], merged[f"{module}.{LORA_B}"] = a, b
        return Aggregate(tensors=merged, kept=combined.kept, diagnostics=combined.diagnostics)
