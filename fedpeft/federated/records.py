"""What a round leaves behind, in memory, in the checkpoint and in the report."""

from pydantic import BaseModel, ConfigDict, Field


class RoundReport(BaseModel):
    """One round."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    round: int = Field(description="Counts from 1.")
    cohort: list[str] = Field(description="Clients whose updates were aggregated.")
    seconds: float = Field(description="Wall-clock seconds, evaluation included.")
    uplink_bytes: int = Field(description="Tensor bytes, all clients of the cohort together.")
    downlink_bytes: int = Field(description="Adapter and head, sent to each client.")
    update_norms: dict[str, float] = Field(
        description="L2 norm of each client's update minus what it started from."
    )
    epsilon: dict[str, float] = Field(description="Spent by each client after this round.")
    diagnostics: dict[str, float] = Field(
        description="What the aggregator says of this round, by name."
    )
    metrics: dict[str, float] | None = Field(
        description="Held-out metrics after this round; null where it was not evaluated."
    )
