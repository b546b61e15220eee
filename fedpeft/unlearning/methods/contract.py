"""What every removal method offers: the contract behind which a method is one file."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import nn

from fedpeft.models.dataset import Dataset
from fedpeft.unlearning.config import UnlearningConfig
from fedpeft.unlearning.low_rank_edit import Successor
from fedpeft.unlearning.unlearn import Deployed, Progress

Claim = Literal["exact", "approximate"]


@dataclass(frozen=True, kw_only=True)
class Removal:
    """What a method gets.

    Attributes:
        base: From `load_base_model`; it is used up.
        deployed: The affected version.
        forget: Rows to be forgotten, tokenized for the model.
        retain: Rows that stay.
        config: The method's settings.
        seed: Draws all that a method draws.
        told: Hears how far it is.
        refusal: Tokens of " I don't know."; a control of the gate trains on them.
    """

    base: nn.Module
    deployed: Deployed
    forget: Dataset
    retain: Dataset
    config: UnlearningConfig
    seed: int
    told: Callable[[Progress], None] = lambda progress: None
    refusal: Sequence[int] = ()


class Method(Protocol):
    """A way from an affected version to its successor.

    Attributes:
        name: In requests, settings and receipts.
        claim: What a receipt may say of it.
        place: "job": `make` does it. "rounds": it goes through the rounds of a run, and `make`
            refuses.
        requestable: Whether a request may name it; a control of the gate may not be named.
    """

    name: str
    claim: Claim
    place: Literal["job", "rounds"]
    requestable: bool

    def make(self, removal: Removal) -> Successor:
        """Makes the successor.

        Raises:
            AdapterError: If the adapter does not fit the model, or a rank does not fit a module.
            ConfigError: If it goes through rounds.
            DataError: If there is nothing to forget, nothing to keep, or a row is in both.
            DivergedError: If a loss is no finite number.
            ModelError: If no module matches.
        """
