"""The `[private]` section of a removal whose job is charged to the client's ledger."""

from pydantic import BaseModel, ConfigDict, Field

from fedpeft.dp.grid import LARGEST_CLIP_NORM, SMALLEST_CLIP_NORM


class PrivateConfig(BaseModel):
    """A job of DP-SGD over all rows of the client; its noise is what meets `epsilon`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epsilon: float = Field(
        default=1.0,
        gt=0,
        allow_inf_nan=False,
        description="What the job alone may cost, at the delta of the adapter's run. It is charged "
        "to the client's budget with all that was charged before.",
    )
    num_steps: int = Field(default=20, ge=1, le=10_000)
    sampling_prob: float = Field(
        default=0.25, gt=0, le=1, description="Of each of the client's rows, in each step."
    )
    l2_clip_norm: float = Field(
        default=1.0,
        ge=SMALLEST_CLIP_NORM,
        le=LARGEST_CLIP_NORM,
        allow_inf_nan=False,
        description="Bound on the L2 norm of one row's gradient.",
    )
    learning_rate: float = Field(
        default=1e-2, gt=0, le=100, allow_inf_nan=False, description="Of Adam, on noised gradients."
    )
