"""The `[model]` section of a run."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


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
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="Of the base model's forward pass in training (autocast). Adapter, head, loss, "
        "per-example gradients, clipping and held-out scores are float32 either way. In "
        "bfloat16 the rows of a batch touch each other by rounding; 2 % more noise allows for it, "
        "by measurement and not by proof: see fedpeft/dp/mechanism.py.",
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="Compute the activations of each layer again in backward instead of keeping "
        "them: less memory, about half more time.",
    )
    compile: bool = Field(
        default=False,
        description="Compile the base model with torch.compile. Needs a C++ compiler, and minutes "
        "at the first steps; not together with gradient_checkpointing.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="Where to train.")

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        # torch 2.13 fails inside checkpointed layers of GPT-2, at a constant in their activation.
        if self.compile and self.gradient_checkpointing:
            raise ValueError(
                "compile and gradient_checkpointing do not go together for every model; set one of "
                "them to false"
            )
        return self
