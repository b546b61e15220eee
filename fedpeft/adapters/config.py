"""The `[adapter]` section of a run."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class AdapterConfig(BaseModel):
    """Which modules are adapted, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["lora"] = Field(default="lora", description="The adapter method.")
    rank: int = Field(default=8, ge=1, description="Rank r of every adapted module.")
    alpha: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="The update is scaled by alpha / rank. Default: the rank, so that it is 1.",
    )
    target_modules: tuple[str, ...] = Field(
        min_length=1,
        description="Name patterns with * and ?, matched against the whole name of a linear module "
        "or its end after a dot: 'query', 'layer.5.*.value', '*_proj'.",
    )
    init: Literal["kaiming", "orthonormal", "principal"] = Field(
        default="kaiming",
        description="Initial A: Kaiming-uniform as in PEFT, random orthonormal rows, or the top "
        "right singular vectors of the module's weight.",
    )

    @property
    def scaling(self) -> float:
        """What B·A is multiplied by."""
        return (self.alpha or self.rank) / self.rank
