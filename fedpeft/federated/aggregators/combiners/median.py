"""The coordinate-wise median (Yin et al., 2018).

It stays within the honest clients' values while fewer than half of the clients are malicious, and
needs no guess how many those are. Of the trimmed means it is the one that trims most, and so the
one that throws most away: with N honest clients its variance is about π/2 of the mean's.
"""

from dataclasses import dataclass

from fedpeft.federated.aggregators.combiners.contract import Combined, check_equal_shares
from fedpeft.federated.aggregators.combiners.trimmed_mean import trimmed
from fedpeft.federated.aggregators.updates import Updates


@dataclass(frozen=True, kw_only=True)
class Median:
    """The middle value of each coordinate; the mean of the two middle ones of an even number."""

    name = "median"
    min_num_updates = 1

    def combine(self, updates: Updates) -> Combined:
        """See `Combiner.combine`."""
        check_equal_shares(self, updates)
        return trimmed(updates, (len(updates) - 1) // 2)
