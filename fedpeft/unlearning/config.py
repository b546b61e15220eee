"""The `[unlearning]` section of a removal."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

MethodName = Literal["loku", "gradient-ascent", "gradient-difference", "kl", "npo", "simnpo"]


class UnlearningConfig(BaseModel):
    """How an adapter is made to forget rows. The defaults are the paper's, for a model of 1.5B."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: MethodName = Field(default="loku", description="What is descended on.")
    rank: int = Field(default=8, ge=1, description="Rank of the change while it is made.")
    alpha: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="Default: twice the rank."
    )
    target_modules: tuple[str, ...] | None = Field(
        default=None,
        description="As in [adapter]. Default: the modules that the adapter adapts. The paper "
        "takes every linear module, and the successor then adapts all of them.",
    )
    start: Literal["importance", "zero"] | None = Field(
        default=None,
        description="'importance': the change starts from what matters to the rows to be forgotten "
        "(FILA). 'zero': B starts at zero. Default: 'importance' for loku, else 'zero'.",
    )
    learning_rate: float = Field(default=2e-4, gt=0, allow_inf_nan=False)
    weight_decay: float = Field(default=0.01, ge=0, allow_inf_nan=False)
    num_epochs: int = Field(default=5, ge=1, description="Over the rows to be forgotten.")
    warmup_epochs: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    batch_size: int = Field(
        default=32, ge=1, description="Rows to be forgotten in a step, and as many that stay."
    )
    importance_batch_size: int = Field(
        default=8, ge=1, description="Rows whose gradient is averaged before it is squared."
    )
    importance_rows: int = Field(
        default=256, ge=1, description="Rows that stay whose importance is computed, at most."
    )
    result_rank: int | None = Field(
        default=None,
        ge=1,
        description="Rank of the successor. Default: the smallest that loses nothing. With less, "
        "the receipt states what was lost.",
    )

    @model_validator(mode="after")
    def _has_steps_after_warmup(self) -> Self:
        if self.warmup_epochs >= self.num_epochs:
            raise ValueError(
                f"warmup_epochs must be less than num_epochs ({self.num_epochs}), "
                f"got {self.warmup_epochs}"
            )
        return self

    @property
    def scaling(self) -> float:
        """What B·A is multiplied by while the change is made."""
        return (self.alpha or 2 * self.rank) / self.rank

    @property
    def starts_from_importance(self) -> bool:
        """Whether the change starts from FILA."""
        return (self.start or ("importance" if self.method == "loku" else "zero")) == "importance"
