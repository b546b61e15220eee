"""Multi-Krum: the mean of the updates that have the closest neighbours (Blanchard et al., 2017).

An update's score is the sum of its squared distances to the n - f - 2 updates closest to it, over
all trained tensors at once. The n - f - 2 updates with the lowest scores are averaged: as many as
are proved to be safe (Damaskinos et al., 2019). An update is taken as a whole or not at all, so
that an honest client whose data are unlike the others' is left out in every round. Distances take
n² passes over the update. Legend: N clients.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedpeft.federated.aggregators.combiners.contract import (
    Combined,
    check_enough,
    check_equal_shares,
)
from fedpeft.federated.aggregators.combiners.trimmed_mean import check_num_byzantine
from fedpeft.federated.aggregators.combiners.weighted_mean import mean_of
from fedpeft.federated.aggregators.updates import Updates
from fedpeft.federated.robustness import min_num_updates
from fedpeft.types import tensor_digest


@dataclass(frozen=True, kw_only=True)
class MultiKrum:
    """The mean of the n - f - 2 updates that lie closest to others.

    Attributes:
        num_byzantine: Malicious clients that a round can stand, f.
    """

    num_byzantine: int
    name = "multi-krum"

    def __post_init__(self) -> None:
        """Refuses a count that defends against nobody."""
        check_num_byzantine(self.num_byzantine)

    @property
    def min_num_updates(self) -> int:
        """Every honest update has more honest neighbours than there are attackers."""
        return min_num_updates("multi-krum", self.num_byzantine)

    def combine(self, updates: Updates) -> Combined:
        """See `Combiner.combine`."""
        check_enough(self, updates)
        check_equal_shares(self, updates)
        count = len(updates) - self.num_byzantine - 2
        distances_NN = squared_distances(updates).fill_diagonal_(torch.inf)
        # The same numbers in the same order, whoever they belong to: equal scores are equal.
        scores_N = distances_NN.sort(dim=1).values[:, :count].sum(dim=1)
        selected = _lowest(scores_N.tolist(), updates, count)
        shares = tuple(1 / count if i in selected else 0.0 for i in range(len(updates)))
        return Combined(
            tensors=mean_of(
                updates.start, [updates.sent[i] for i in selected], [1 / count] * count
            ),
            shares=shares,
            kept=tuple(float(share > 0) for share in shares),
            diagnostics={"num_selected": float(count)},
        )


def squared_distances(updates: Updates) -> Tensor:
    """Returns the squared L2 distance of every two updates over all tensors, shape (N, N).

    From differences, not from products: those of updates that are nearly alike would cancel.
    """
    total_NN = torch.zeros(len(updates), len(updates), dtype=torch.float64)
    for name in sorted(updates.start):
        rows = updates.stacked(name).flatten(start_dim=1)
        distances_NN = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
        total_NN += distances_NN.square().cpu()
    return total_NN


def _lowest(scores: Sequence[float], updates: Updates, count: int) -> list[int]:
    """Returns the places of the `count` lowest scores; of equal ones by content, not by order."""
    limit = sorted(scores)[count - 1]
    below = [i for i, score in enumerate(scores) if score < limit]
    tied = [i for i, score in enumerate(scores) if score == limit]
    if len(below) + len(tied) > count:
        tied.sort(key=lambda i: tensor_digest(updates.sent[i]))
    return sorted(below + tied[: count - len(below)])
