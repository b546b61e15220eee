"""What every objective offers: the contract behind which an objective is one file."""

from typing import Protocol

from torch import Tensor

from fedpeft.unlearning.objectives.answers import Answers


class Objective(Protocol):
    """A loss whose descent makes a model forget some rows and keep others.

    It is the mean of `forget_terms` plus the mean of `retain_terms`, each over all rows of a step,
    however these are cut into physical batches.

    Attributes:
        name: In settings and receipts.
        keeps: Whether there are retain terms.
        remembers: Whether answers need the logits of before unlearning began.
    """

    name: str
    keeps: bool
    remembers: bool

    def forget_terms(self, forget: Answers) -> Tensor:
        """Returns the terms of rows to be forgotten, one a token or one a row."""

    def retain_terms(self, retain: Answers) -> Tensor:
        """Returns the terms of rows that stay, one a token or one a row."""
