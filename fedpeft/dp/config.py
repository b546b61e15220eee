"""The `[privacy]` section of a run."""

from pydantic import BaseModel, ConfigDict, Field

from fedpeft.dp.grid import LARGEST_CLIP_NORM, SMALLEST_CLIP_NORM


class PrivacyConfig(BaseModel):
    """The budget of each client and how its gradients are clipped."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = Field(
        default=True,
        description="False trains without clipping and noise: no privacy guarantee at all, and "
        "every output says so in red.",
    )
    target_epsilon: float = Field(
        default=6.0,
        gt=0,
        allow_inf_nan=False,
        description="Budget of each client for the whole run: example-level, neighbours differ "
        "by adding or removing one example.",
    )
    delta: float = Field(
        default=1e-5,
        gt=0,
        lt=1,
        description="Must lie below 1/n for every client's number of rows n.",
    )
    l2_clip_norm: float = Field(
        default=1.0,
        ge=SMALLEST_CLIP_NORM,
        le=LARGEST_CLIP_NORM,
        allow_inf_nan=False,
        description="Bound on the L2 norm of one example's gradient over all trained tensors.",
    )
    insecure_seeded_noise: bool = Field(
        default=False,
        description="Draws noise and Poisson samples from the run's seed, so that a run can be "
        "repeated bit for bit. Whoever knows the seed can remove the noise: for tests only.",
    )
