"""Privacy events: what was released, on what it was, and in which sense it is private.

An event is frozen and never changes its meaning: a spent budget is a list of events, and what they
cost together is computed from them when asked. The privacy unit, the neighbouring relation and the
sampling scheme are part of an event, so that an accountant can refuse what it does not know.
"""

import dataclasses
import sys
from dataclasses import dataclass
from numbers import Real
from typing import Literal

from fedpeft.errors import PrivacyError


@dataclass(frozen=True, kw_only=True)
class DpSgdEvent:
    """Steps of DP-SGD on one data set: Poisson sampling, then the Gaussian mechanism.

    Attributes:
        noise_multiplier: Noise stddev divided by the L2 sensitivity of the sum.
        sampling_prob: Probability that an example takes part in a step.
        num_steps: Steps, each a release of its own.
        privacy_unit: What a neighbouring data set differs in.
        neighboring_relation: How it differs.
        sampling_scheme: How the examples of a step are chosen: each by its own secret coin.
    """

    noise_multiplier: float
    sampling_prob: float
    num_steps: int
    privacy_unit: Literal["example"] = "example"
    neighboring_relation: Literal["add_or_remove_one"] = "add_or_remove_one"
    sampling_scheme: Literal["poisson"] = "poisson"

    def __post_init__(self) -> None:
        """Refuses an event whose privacy loss is not defined."""
        _check_noise_multiplier(self.noise_multiplier)
        if not (isinstance(self.sampling_prob, Real) and 0 < self.sampling_prob <= 1):
            raise PrivacyError(f"sampling_prob must lie in (0, 1], got {self.sampling_prob}")
        _check_count("num_steps", self.num_steps)

    @property
    def num_releases(self) -> int:
        """How many noised sums went out."""
        return self.num_steps

    def repeated(self, count: int) -> "DpSgdEvent":
        """Returns one event that costs as much as `count` of this one."""
        return dataclasses.replace(self, num_steps=self.num_steps * count)

    def single(self) -> "DpSgdEvent":
        """Returns one release of this event."""
        return dataclasses.replace(self, num_steps=1)


@dataclass(frozen=True, kw_only=True)
class ClientUpdateEvent:
    """Rounds that a client's whole update took part in: clipped, summed with others, noised once.

    Attributes:
        noise_multiplier: Noise stddev divided by the L2 norm that a clipped update can have.
        num_rounds: Rounds that the client was in the cohort of, each a release.
        privacy_unit: What a neighbouring federation differs in.
        neighboring_relation: How it differs: the client's update is zero in every round.
        sampling_scheme: None: cohorts are public, so that they hide nobody.
    """

    noise_multiplier: float
    num_rounds: int
    privacy_unit: Literal["client"] = "client"
    neighboring_relation: Literal["zero_out_one"] = "zero_out_one"
    sampling_scheme: Literal["none"] = "none"

    def __post_init__(self) -> None:
        """Refuses an event whose privacy loss is not defined."""
        _check_noise_multiplier(self.noise_multiplier)
        _check_count("num_rounds", self.num_rounds)

    @property
    def num_releases(self) -> int:
        """How many noised sums went out."""
        return self.num_rounds

    def repeated(self, count: int) -> "ClientUpdateEvent":
        """Returns one event that costs as much as `count` of this one."""
        return dataclasses.replace(self, num_rounds=self.num_rounds * count)

    def single(self) -> "ClientUpdateEvent":
        """Returns one release of this event."""
        return dataclasses.replace(self, num_rounds=1)


PrivacyEvent = DpSgdEvent | ClientUpdateEvent
"""Every kind of event that accountants and ledgers know."""


def _check_noise_multiplier(value: float) -> None:
    # Compared, not tested for being finite: an int may be too large to become a float.
    if not (isinstance(value, Real) and 0 < value <= sys.float_info.max):
        raise PrivacyError(f"noise_multiplier must be positive and finite, got {value}")


def _check_count(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise PrivacyError(f"{name} must be an integer of at least 1, got {value}")
