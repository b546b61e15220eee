"""What all methods have in common that take steps on an objective."""

from typing import Literal

from fedpeft.unlearning.low_rank_edit import Successor
from fedpeft.unlearning.methods.contract import Claim, Removal
from fedpeft.unlearning.unlearn import unlearn


class ByObjective:
    """Takes steps on the objective of the method's name, on top of the merged adapter."""

    name: str
    claim: Claim = "approximate"
    place: Literal["job", "rounds"] = "job"
    requestable = True

    def make(self, removal: Removal) -> Successor:
        """See `Method.make`."""
        config = removal.config.model_copy(update={"method": self.name})
        return unlearn(
            removal.base,
            removal.deployed,
            removal.forget,
            removal.retain,
            config,
            seed=removal.seed,
            told=removal.told,
        )
