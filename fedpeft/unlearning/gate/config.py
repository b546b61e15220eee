"""Thresholds of the verification gate, registered in the plan before a job begins."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

ServedPrecision = Literal["fp32", "bf16", "int8", "int4"]
PRECISIONS: tuple[ServedPrecision, ...] = ("fp32", "bf16", "int8", "int4")


class GateConfig(BaseModel):
    """What is asked of a successor, and how it is measured.

    A measure of forgetting is held against the level of a model that never saw the rows: that of a
    reference, or else what can be said without one (`gate.measured`). It may stand above that level
    by `tolerance`, or by `max_remaining` of what the affected version stands above it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    served: tuple[ServedPrecision, ...] = Field(
        default=("fp32", "bf16"),
        min_length=1,
        description="At which it is served. Rows must be forgotten at every precision that is "
        "measured, since whoever has the files may round them; utility is asked for at these.",
    )
    max_remaining: float = Field(
        default=0.3,
        ge=0,
        lt=1,
        description="Share that may remain of what the affected version shows of the rows beyond "
        "the level of a model that never saw them. 1 would pass what does nothing.",
    )
    tolerance: float = Field(
        default=0.05,
        ge=0,
        le=0.5,
        description="What a measure of extraction or confidence may stand above that level anyway.",
    )
    membership_tolerance: float = Field(
        default=0.15,
        ge=0,
        lt=0.5,
        description="The same for the AUC of membership inference, which scatters on few rows.",
    )
    max_utility_loss: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="Share of the affected version's accuracy on rows that stay that may be lost.",
    )
    max_model_utility_loss: float = Field(
        default=0.25,
        ge=0,
        lt=1,
        description="The same of TOFU's model utility: a harmonic mean, which follows its worst "
        "part, and ROUGE-L of greedy answers among the parts, which one other token changes. It "
        "fails where its whole interval is below.",
    )
    min_relearning: float = Field(
        default=0.15,
        ge=0,
        le=1,
        description="Steps until the rows are learned again, as a share of those that a model "
        "needs that never saw them.",
    )
    min_forget_quality: float = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="With a reference: p-value of the test that truth ratios are alike (TOFU).",
    )
    min_change: float = Field(
        default=0.01,
        gt=0,
        allow_inf_nan=False,
        description="Mean absolute change of the rows' losses; less is no change.",
    )
    max_rows: int = Field(
        default=64, ge=2, description="Rows of each kind that are measured, the first ones."
    )
    check_share: float = Field(
        default=0.25,
        gt=0,
        lt=1,
        description="Share of the rows that stay that the method does not see: utility is measured "
        "on them alone.",
    )
    ngram: int = Field(default=5, ge=1, description="n of EL_n, the extraction likelihood.")
    num_prefixes: int = Field(
        default=8, ge=1, description="Prefixes of an answer that are continued, at most."
    )
    relearning_steps: int = Field(
        default=20, ge=1, description="Steps after which rows count as not learned again."
    )
    relearning_rate: float = Field(
        default=1e-3, gt=0, allow_inf_nan=False, description="Learning rate of relearning."
    )
    relearning_batch_size: int = Field(default=16, ge=1, description="Its rows a step.")
    confidence: float = Field(default=0.95, gt=0, lt=1, description="Of every interval.")
