"""Combiners, one file each, behind `contract.Combiner`."""

from fedpeft.federated.aggregators.combiners.contract import Combined, Combiner
from fedpeft.federated.aggregators.combiners.median import Median
from fedpeft.federated.aggregators.combiners.multi_krum import MultiKrum
from fedpeft.federated.aggregators.combiners.norm_bound import NormBound
from fedpeft.federated.aggregators.combiners.trimmed_mean import TrimmedMean
from fedpeft.federated.aggregators.combiners.weighted_mean import WeightedMean
from fedpeft.federated.config import FederationConfig

WEIGHTED_MEAN = WeightedMean()


def combiner_for(federation: FederationConfig) -> Combiner:
    """Returns the combiner that a run's federation section asks for."""
    if federation.combine == "norm-bound":
        assert federation.max_update_norm is not None
        return NormBound(max_update_norm=federation.max_update_norm)
    if federation.combine == "median":
        return Median()
    if federation.combine == "trimmed-mean":
        assert federation.num_byzantine is not None
        return TrimmedMean(num_byzantine=federation.num_byzantine)
    if federation.combine == "multi-krum":
        assert federation.num_byzantine is not None
        return MultiKrum(num_byzantine=federation.num_byzantine)
    return WEIGHTED_MEAN


__all__ = [
    "WEIGHTED_MEAN",
    "Combined",
    "Combiner",
    "Median",
    "MultiKrum",
    "NormBound",
    "TrimmedMean",
    "WeightedMean",
    "combiner_for",
]
