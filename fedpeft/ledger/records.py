"""What the ledger hands out."""

from collections.abc import Mapping
from dataclasses import dataclass

from fedpeft.dp.events import PrivacyEvent


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """A privacy event that is paid for; one release may follow.

    Attributes:
        id: Unique.
        fingerprint: The data set.
        event: What was paid for.
        purpose: What for, in the words of the one who asked.
        position: Of its entry in the chain.
    """

    id: str
    fingerprint: str
    event: PrivacyEvent
    purpose: str
    position: int


@dataclass(frozen=True, kw_only=True)
class Balance:
    """Where a data set stands.

    Attributes:
        fingerprint: The data set.
        owner: Whose rows they are; empty on their owner's own machine.
        num_rows: Different rows.
        overlaps: Other data sets that share rows with it → how many. Their events count too.
        epsilon: The budget; None where none was set.
        delta: Of the budget.
        spent: Epsilon at that delta of all events that can have touched one of the rows.
        num_events: These events.
        num_open: Those of them that no release was recorded for: running now, or crashed.
        exhausted: Whether the latest event would not fit once more, in any budget it counts in.
    """

    fingerprint: str
    owner: str
    num_rows: int
    overlaps: Mapping[str, int]
    epsilon: float | None
    delta: float | None
    spent: float | None
    num_events: int
    num_open: int
    exhausted: bool

    @property
    def remaining(self) -> float | None:
        """Epsilon left. Since epsilon is not additive, ask `remaining_events` what fits in it."""
        if self.epsilon is None or self.spent is None:
            return None
        return max(0.0, self.epsilon - self.spent)
