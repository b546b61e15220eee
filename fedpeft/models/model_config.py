"""The `[model]` section of a run."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ModelConfig(BaseModel):
    """The frozen base model and the task on top of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(
        description="A folder, 'package:<distribution>' for a model that an installed Python "
        "package carries, or a Hugging Face hub id (needs the network once)."
    )
    revision: str | None = Field(default=None, description="Hub revision; ignored for folders.")
    task: Literal["classification", "causal-lm"] = Field(
        description="'classification': mean-pooled linear head. 'causal-lm': next-token loss, on "
        "the answer only where question and answer columns are given."
    )
    head: Literal["trained", "frozen"] = Field(
        default="trained",
        description="Classification head: trained under the same clip and noise, starting at zero; "
        "or frozen at a random orthonormal start.",
    )
    max_length: int = Field(default=128, ge=2, description="Longer rows are cut, in tokens.")
    max_tokens_per_batch: int = Field(
        default=2048,
        ge=1,
        description="Bound on the padded tokens of one physical batch. Memory only: it changes "
        "neither the result nor the privacy.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="Where to train.")
