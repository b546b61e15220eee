"""The norm bound: no client moves the adapter further than a public length allows.

What a client changed is clipped to that length over all tensors at once, then averaged by weight
(Sun et al., 2019, "Can You Really Backdoor Federated Learning?"). A malicious client still moves
the mean by up to its share times the bound, every round, in the direction it likes: the bound
limits the pace of an attack and excludes nobody.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from fedpeft.errors import AdapterError
from fedpeft.federated.aggregators.combiners.contract import Combined
from fedpeft.federated.aggregators.combiners.weighted_mean import mean_of
from fedpeft.federated.aggregators.updates import Updates, update_norm


@dataclass(frozen=True, kw_only=True)
class NormBound:
    """The weighted mean of clipped updates; where none is clipped, the weighted mean bit for bit.

    Attributes:
        max_update_norm: Bound on the L2 norm of what one client changed. Public: a bound taken from
            the updates themselves would be moved by the attacker as well.
    """

    max_update_norm: float
    name = "norm-bound"
    min_num_updates = 1

    def __post_init__(self) -> None:
        """Refuses a bound that is none."""
        if not 0 < self.max_update_norm < math.inf:
            raise AdapterError(
                f"max_update_norm must be positive and finite, got {self.max_update_norm}"
            )

    def combine(self, updates: Updates) -> Combined:
        """See `Combiner.combine`."""
        scales = [self._scale(updates.start, tensors) for tensors in updates.sent]
        clipped = [
            tensors if scale == 1 else _scaled(updates.start, tensors, scale)
            for tensors, scale in zip(updates.sent, scales, strict=True)
        ]
        num_clipped = sum(scale < 1 for scale in scales)
        return Combined(
            tensors=mean_of(updates.start, clipped, updates.shares),
            shares=None if num_clipped else tuple(updates.shares),
            kept=tuple(scales),
            diagnostics={"num_clipped": float(num_clipped)},
        )

    def _scale(self, start: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> float:
        norm = update_norm(start, tensors)
        return self.max_update_norm / norm if norm > self.max_update_norm else 1.0


def _scaled(
    start: Mapping[str, Tensor], tensors: Mapping[str, Tensor], scale: float
) -> dict[str, Tensor]:
    return {
        name: origin.double() + scale * (tensors[name].double() - origin.double())
        for name, origin in start.items()
    }
