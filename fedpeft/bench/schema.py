"""The schema of bench.json, the same for every benchmark.

An arm is a way to do one piece of work: a private step, a draw of noise, a whole program. All arms
of a case do the same work on the same input, so that their ratios mean something.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION: Literal[1] = 1

Quantity = Literal["seconds", "cpu_seconds", "peak_memory", "step_memory", "wire_bytes"]
TENSORS = "tensors"
"""What 'wire_bytes' of an arm are held against: the bytes of the tensors that it must move."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class MemoryReport(_Section):
    """Memory of one arm in a process of its own, without the interpreter and its libraries."""

    method: str = Field(description="How it was measured, in words.")
    loaded_bytes: int = Field(description="Held before the work began: weights, optimizer.")
    peak_bytes: int = Field(description="The most held while it worked, what was loaded included.")

    @property
    def step_bytes(self) -> int:
        """What the work took on top of what was loaded."""
        return self.peak_bytes - self.loaded_bytes


class ArmReport(_Section):
    """One arm: what it is, and what it cost in each block."""

    name: str = Field(description="Unique in the case.")
    description: str = Field(description="What the arm does, in words.")
    seconds: list[float] = Field(description="Wall-clock seconds, one a block, in order of blocks.")
    cpu_seconds: list[float] = Field(
        default_factory=list,
        description="Processor seconds, one a block; empty where another process did the work.",
    )
    memory: MemoryReport | None = Field(default=None, description="Null if not measured.")
    metrics: dict[str, float] = Field(
        default_factory=dict, description="Other results by name, such as tokens_per_second."
    )


class RatioReport(_Section):
    """One arm against another."""

    quantity: Quantity = Field(
        description="'peak_memory' counts what was loaded, 'step_memory' only what came on top; "
        "'wire_bytes' are those of TCP, TLS included."
    )
    numerator: str = Field(description="Name of an arm.")
    denominator: str = Field(description="Name of the arm it is held against, or 'tensors'.")
    median: float = Field(description="Median over blocks of the ratio within a block.")
    low: float | None = Field(
        default=None, description="Lower end of the interval; null: too few blocks for one."
    )
    high: float | None = Field(default=None, description="Upper end of the interval.")
    confidence: float | None = Field(
        default=None, description="Least coverage of the interval; exact, from order statistics."
    )
    num_pairs: int = Field(description="Blocks, or 1 for memory and bytes.")
    at_most: float | None = Field(default=None, description="The target, where there is one.")

    @property
    def is_met(self) -> bool | None:
        """Whether the median keeps the target; None without a target."""
        return None if self.at_most is None else self.median <= self.at_most


class CheckReport(_Section):
    """A result of the arms that was compared with a reference, in the same process."""

    name: str = Field(description="What was compared with what.")
    error: float | None = Field(description="The difference found; null if it was not finite.")
    tolerance: float = Field(description="The largest difference that passes.")
    measure: str = Field(description="What the difference is relative to, in words.")

    @property
    def has_passed(self) -> bool:
        """Whether the difference is finite and within the tolerance."""
        return self.error is not None and self.error <= self.tolerance


class CaseReport(_Section):
    """All arms on one piece of work."""

    name: str = Field(description="Unique in the report.")
    settings: dict[str, str | int | float] = Field(description="What fixes the work.")
    arms: list[ArmReport] = Field(description="All of them, the reference first.")
    ratios: list[RatioReport] = Field(description="Between arms of this case.")
    checks: list[CheckReport] = Field(description="Of this case; all must have passed.")
    notes: list[str] = Field(default_factory=list, description="What a reader should know.")


class BenchReport(_Section):
    """A whole benchmark."""

    schema_version: Literal[1] = Field(
        default=SCHEMA_VERSION, description="Raised when an old reader would misread the file."
    )
    benchmark: Literal["dp-step", "simulate", "noise", "round"] = Field(
        description="Which benchmark."
    )
    created_at: str = Field(description="UTC, ISO 8601.")
    seed: int = Field(description="Seed of the order of arms, of the inputs and initial values.")
    num_blocks: int = Field(description="Measured blocks; each runs every arm once.")
    num_warmup_blocks: int = Field(description="Blocks before them that were not measured.")
    hardware: dict[str, str] = Field(description="The machine, in words, with its threads.")
    versions: dict[str, str] = Field(description="Versions of the software that ran.")
    cases: list[CaseReport] = Field(description="In the order in which they ran.")

    @property
    def failed_checks(self) -> list[str]:
        """Case and name of each check that did not pass."""
        return [f"{c.name}: {k.name}" for c in self.cases for k in c.checks if not k.has_passed]
