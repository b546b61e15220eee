"""Retraining without the rows: exact, through the ordinary rounds of a run."""

from typing import Literal

from fedpeft.errors import ConfigError
from fedpeft.unlearning.low_rank_edit import Successor
from fedpeft.unlearning.methods.contract import Claim, Removal


class Retrain:
    """From the last version that the client's rows are not in, or from nothing."""

    name = "retrain"
    claim: Claim = "exact"
    place: Literal["job", "rounds"] = "rounds"
    requestable = True

    def make(self, removal: Removal) -> Successor:
        """Refuses: no single machine has the rows of all clients."""
        raise ConfigError(
            "retraining goes through the rounds of a run, with the clients that hold the other "
            "rows; submit it as a removal request with --method retrain"
        )
