"""The coordinate-wise trimmed mean (Yin et al., 2018).

Each value of the result is the mean of what is left at that place after the largest and the
smallest values are taken away. Up to that many attackers cannot pull it out of the range of the
honest clients' values, one more can. Each place is decided on its own, so that the result need not
be near any client's update as a whole, and values between the honest ones are always believed.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedpeft.errors import AdapterError
from fedpeft.federated.aggregators.combiners.contract import (
    Combined,
    check_enough,
    check_equal_shares,
)
from fedpeft.federated.aggregators.updates import Updates
from fedpeft.federated.robustness import min_num_updates


@dataclass(frozen=True, kw_only=True)
class TrimmedMean:
    """The mean without the `num_byzantine` largest and smallest values of each coordinate.

    Attributes:
        num_byzantine: Malicious clients that a round can stand.
    """

    num_byzantine: int
    name = "trimmed-mean"

    def __post_init__(self) -> None:
        """Refuses a count that trims nothing."""
        check_num_byzantine(self.num_byzantine)

    @property
    def min_num_updates(self) -> int:
        """One value must be left."""
        return min_num_updates("trimmed-mean", self.num_byzantine)

    def combine(self, updates: Updates) -> Combined:
        """See `Combiner.combine`."""
        check_enough(self, updates)
        check_equal_shares(self, updates)
        return trimmed(updates, self.num_byzantine)


def check_num_byzantine(num_byzantine: int) -> None:
    """Raises AdapterError where nobody is taken for malicious."""
    if type(num_byzantine) is not int or num_byzantine < 1:
        raise AdapterError(f"num_byzantine must be an integer of at least 1, got {num_byzantine}")


def trimmed(updates: Updates, num_trimmed: int) -> Combined:
    """Returns the mean without the `num_trimmed` largest and smallest values of each coordinate.

    Of each update it is told at which share of its coordinates it lay within what was not trimmed;
    all of several equal values do.
    """
    tensors: dict[str, Tensor] = {}
    num_within_N = torch.zeros(len(updates), dtype=torch.float64)
    num_coordinates = 0
    for name, origin in updates.start.items():
        values = updates.stacked(name)
        inner = values.sort(dim=0).values[num_trimmed : len(updates) - num_trimmed]
        tensors[name] = inner.mean(dim=0).to(origin.dtype)
        within = (values >= inner[0]) & (values <= inner[-1])
        num_within_N += within.flatten(start_dim=1).sum(dim=1).cpu()
        num_coordinates += origin.numel()
    return Combined(
        tensors=tensors,
        kept=tuple((num_within_N / num_coordinates).tolist()),
        diagnostics={"num_trimmed": 2.0 * num_trimmed},
    )
