"""Aggregators, one file each, behind `contract.Aggregator`."""

from fedpeft.federated.aggregators.contract import Aggregate, Aggregator
from fedpeft.federated.aggregators.fedavg import FedAvg
from fedpeft.federated.aggregators.fedsvd import FedSvd
from fedpeft.federated.aggregators.ffa_lora import FfaLora
from fedpeft.federated.aggregators.frozen_orthonormal import FrozenOrthonormal

AGGREGATORS: dict[str, Aggregator] = {
    aggregator.name: aggregator
    for aggregator in (FedSvd(), FedAvg(), FfaLora(), FrozenOrthonormal())
}

__all__ = ["AGGREGATORS", "Aggregate", "Aggregator"]
