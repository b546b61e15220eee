"""The `[privacy]` section of a run."""

from typing import Literal, Self
from urllib.parse import parse_qs, urlsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedpeft.dp.grid import LARGEST_CLIP_NORM, SMALLEST_CLIP_NORM


class PrivacyConfig(BaseModel):
    """The budget of each client and how its gradients are clipped."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = Field(
        default=True,
        description="False trains without clipping and noise: no privacy guarantee at all, and "
        "every output says so in red.",
    )
    mechanism: Literal["dp-sgd", "client-level"] = Field(
        default="dp-sgd",
        description="'dp-sgd': every local step is clipped by example and noised at the client; "
        "protects one example, against the coordinator too. 'client-level': a client's whole "
        "update is clipped, and the coordinator, which must be trusted, adds noise once to their "
        "sum; protects all that a client has, against those who see the adapter.",
    )
    target_epsilon: float = Field(
        default=6.0,
        gt=0,
        allow_inf_nan=False,
        description="Budget of each client for the whole run, in the unit of the mechanism.",
    )
    delta: float = Field(
        default=1e-5,
        gt=0,
        lt=1,
        description="Must lie below 1/n: for 'dp-sgd' n is the number of rows of every client, for "
        "'client-level' the number of clients.",
    )
    l2_clip_norm: float = Field(
        default=1.0,
        ge=SMALLEST_CLIP_NORM,
        le=LARGEST_CLIP_NORM,
        allow_inf_nan=False,
        description="Bound on the L2 norm, over all trained tensors, of one example's gradient, or "
        "with 'client-level' of one client's update.",
    )
    min_noise_multiplier: float = Field(
        default=0.3,
        ge=0,
        allow_inf_nan=False,
        description="A client refuses a plan with less noise than this, whatever its budget: below "
        "it, a single step tells one example from none nearly always.",
    )
    ledger: str | None = Field(
        default=None,
        description="Ledger that is charged: a file or a postgresql:// URL without a password. "
        "Rows that have a budget there keep it; a row is known by its values and the id of the "
        "client that holds it. Default: a ledger of the run's own, in its folder, which knows of "
        "no other run.",
    )
    insecure_seeded_noise: bool = Field(
        default=False,
        description="Draws noise and Poisson samples from the run's seed, so that a run can be "
        "repeated bit for bit. Whoever knows the seed can remove the noise: for tests only.",
    )

    @model_validator(mode="after")
    def _ledger_holds(self) -> Self:
        if self.ledger is None:
            return self
        if not self.enabled or self.insecure_seeded_noise:
            raise ValueError(
                "a ledger cannot be charged by a run without privacy, or with seeded noise: no "
                "finite epsilon would cover it; leave out privacy.ledger"
            )
        if "://" in self.ledger and _holds_password(self.ledger):
            raise ValueError(
                "privacy.ledger must not hold a password, since reports show the configuration; "
                "use PGPASSFILE or ~/.pgpass"
            )
        return self


def _holds_password(url: str) -> bool:
    parts = urlsplit(url)
    return parts.password is not None or any("password" in name for name in parse_qs(parts.query))
