"""What every combiner offers: how many clients' tensors become one of each.

Combiners stand between clients and aggregators: any of them goes with any aggregator, which then
makes the next adapter out of the combined tensors. They see nothing but updates. Under DP-SGD at
the client these are released values already, so that combining them, selecting and leaving out
included, is post-processing and spends no epsilon. Client-level noise is another matter: it fits
the sum of clipped updates and nothing else, so that only the weighted mean goes with it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from fedpeft.errors import AdapterError
from fedpeft.federated.aggregators.updates import Updates


@dataclass(frozen=True, kw_only=True)
class Combined:
    """One value for each trained tensor, and how it came about.

    Attributes:
        tensors: In the types and shapes of what the cohort started from.
        shares: Share of each update where `tensors` is their weighted mean as they were sent; None
            where it is anything else.
        kept: How much of each update went in, from 0 to 1, in the order of the updates; empty where
            nothing is ever left out.
        diagnostics: What the combiner has to say, by name.
    """

    tensors: Mapping[str, Tensor]
    shares: tuple[float, ...] | None = None
    kept: tuple[float, ...] = ()
    diagnostics: Mapping[str, float] = field(default_factory=dict)


class Combiner(Protocol):
    """One way to combine updates.

    Every value of a combined tensor depends on the updates as a set: their order changes nothing
    but the rounding of float64, and adding the same to the start and to every update adds it to
    the result. `min_num_updates` is the fewest that it combines.
    """

    @property
    def name(self) -> str:
        """Its name in the configuration."""

    @property
    def min_num_updates(self) -> int:
        """The fewest updates that it combines."""

    def combine(self, updates: Updates) -> Combined:
        """Returns one value for each trained tensor, computed in float64.

        Raises:
            AdapterError: If there are too few updates, or their weights cannot be honoured.
        """


def check_enough(combiner: Combiner, updates: Updates) -> None:
    """Raises AdapterError where the combiner cannot do with so few updates."""
    if len(updates) < combiner.min_num_updates:
        raise AdapterError(
            f"{combiner.name} needs at least {combiner.min_num_updates} updates, got "
            f"{len(updates)}; ask more clients or assume fewer malicious ones"
        )


def check_equal_shares(combiner: Combiner, updates: Updates) -> None:
    """Raises AdapterError where clients weigh differently and the combiner counts clients."""
    if min(updates.shares) != max(updates.shares):
        raise AdapterError(
            f"{combiner.name} counts every client as one and needs equal weights, got shares from "
            f"{min(updates.shares):.3g} to {max(updates.shares):.3g}; weight clients uniformly"
        )
