"""What a private job says of its guarantee, and whether it can be true of the job that was asked.

The noise is added and the charge is made on the client's machine, as in every round: that it is
done, nobody else can see. What can be checked is that the numbers are those of the order, and that
the epsilon is no less than the accountant's for them.
"""

import math
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedpeft.dp.config import PrivacyConfig
from fedpeft.dp.events import DpSgdEvent
from fedpeft.errors import PrivacyError
from fedpeft.unlearning.private_config import PrivateConfig


class PrivacyStatement(BaseModel):
    """All finite; epsilons are at `delta`, and are of one row."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epsilon: float = Field(gt=0, description="Of the job alone.")
    epsilon_spent: float = Field(
        gt=0, description="Of all that the client's ledger was ever charged for its rows."
    )
    delta: float = Field(gt=0, lt=1)
    noise_multiplier: float = Field(gt=0)
    sampling_prob: float = Field(gt=0, le=1)
    num_steps: int = Field(ge=1)
    l2_clip_norm: float = Field(gt=0)

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if self.epsilon_spent < self.epsilon:
            raise ValueError("less was spent in all than by the job alone")
        return self

    @property
    def event(self) -> DpSgdEvent:
        """What the job released."""
        return DpSgdEvent(
            noise_multiplier=self.noise_multiplier,
            sampling_prob=self.sampling_prob,
            num_steps=self.num_steps,
        )


def check_statement(stated: PrivacyStatement, asked: PrivateConfig, privacy: PrivacyConfig) -> None:
    """Checks a statement against what was asked and what it must have cost.

    Args:
        stated: Of a job.
        asked: Of its order.
        privacy: Of the run that made the adapter: its delta is that of every epsilon of it.

    Raises:
        PrivacyError: If it is of another job, or its epsilon is less than such a job costs.
    """
    from fedpeft.dp.accounting import epsilon  # scipy, which a coordinator does without

    found = (stated.num_steps, stated.sampling_prob, stated.l2_clip_norm, stated.delta)
    expected = (asked.num_steps, asked.sampling_prob, asked.l2_clip_norm, privacy.delta)
    # The probability went through a division by the number of rows.
    if not all(math.isclose(f, e, rel_tol=1e-12) for f, e in zip(found, expected, strict=True)):
        raise PrivacyError(
            "the job was to have steps, sampling probability, clip norm and delta "
            f"{expected}, and states {found}"
        )
    least = epsilon([stated.event], stated.delta)
    if not stated.epsilon >= least:
        raise PrivacyError(
            f"the job states epsilon {stated.epsilon} for noise that costs {least}; nobody's "
            "epsilon is reported lower than what was released"
        )
    if stated.epsilon > asked.epsilon:
        raise PrivacyError(
            f"the job was to cost epsilon {asked.epsilon:g}, and states {stated.epsilon:g}"
        )
