"""What the gate measured and decided."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedpeft.errors import ProtocolError
from fedpeft.unlearning.gate.config import GateConfig, ServedPrecision

Kind = Literal["change", "forgetting", "utility"]


class Estimate(BaseModel):
    """A value, with its interval where it has one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float = Field(allow_inf_nan=False)
    low: float | None = Field(default=None, allow_inf_nan=False)
    high: float | None = Field(default=None, allow_inf_nan=False)


class Measurement(BaseModel):
    """One measure at one precision."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="One of `gate.measured.MEASURES`.")
    kind: Kind
    after: Estimate | None = Field(description="Of the successor; null: could not be measured.")
    before: Estimate | None = Field(default=None, description="Of the affected version.")
    level: Estimate | None = Field(
        default=None, description="Of a model that never saw the rows; see level_of."
    )
    level_of: str = Field(default="", description="Where the level comes from.")
    at_most: float | None = Field(default=None, allow_inf_nan=False, description="Its bound.")
    at_least: float | None = Field(default=None, allow_inf_nan=False, description="Its bound.")
    passed: bool | None = Field(description="Null: no bound, or not measured.")
    note: str = Field(default="", description="Why it was not measured, or has no bound.")


class GateReport(BaseModel):
    """All measures at all precisions, and the decision."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    passed: bool
    reasons: tuple[str, ...] = Field(description="Why it did not pass; empty where it did.")
    reference: bool = Field(description="Whether a retrained reference was compared with.")
    thresholds: GateConfig
    precisions: dict[ServedPrecision, tuple[Measurement, ...]]
    not_measured: tuple[str, ...] = Field(description="In plain words.")
    num_forget: int = Field(ge=0, description="Rows that were measured.")
    num_retain: int = Field(ge=0, description="The same of rows that stay.")
    num_held_out: int = Field(ge=0, description="The same of rows that nobody trained on.")

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        failed = any(m.passed is False for some in self.precisions.values() for m in some)
        decided = all(
            {"change", "forgetting"} <= {m.kind for m in some if m.passed}
            for some in self.precisions.values()
        )
        if self.passed != (not self.reasons) or (
            self.passed and (failed or not decided or not self.precisions)
        ):
            raise ValueError("the decision does not follow from the measurements")
        return self

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Reads a report.

        Raises:
            ProtocolError: If it is none, or its decision does not follow from its measurements.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            detail = error.errors()[0]
            place = ".".join(map(str, detail["loc"]))
            raise ProtocolError(
                f"the gate's report cannot be read: {place}: {detail['msg']}"
            ) from (error)
