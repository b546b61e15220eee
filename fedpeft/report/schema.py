"""The schema of report.json; `fedpeft report schema` prints it as JSON Schema."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PrivacyReport(_Section):
    """What is guaranteed to whom."""

    enabled: bool = Field(description="False: the run gives no privacy guarantee at all.")
    insecure_seeded_noise: bool = Field(
        description="True: noise and sampling came from a seed, so whoever knows it can undo them."
    )
    privacy_unit: Literal["example"] = Field(
        default="example", description="What a neighbouring data set differs in."
    )
    neighboring_relation: Literal["add_or_remove_one"] = Field(default="add_or_remove_one")
    sampling: Literal["poisson"] = Field(default="poisson")
    accountant: str = Field(default="PLD", description="Which accountant computed every epsilon.")
    target_epsilon: float | None = Field(default=None, description="Budget of each client.")
    delta: float | None = Field(default=None)
    l2_clip_norm: float | None = Field(default=None)


class ClientReport(_Section):
    """One client over the whole run. Everything but epsilon would stay with the client."""

    client_id: str
    num_examples: int
    weight: float = Field(description="Fixed public weight; the weights of all clients sum to 1.")
    label_counts: dict[str, int] = Field(
        description="Rows by label; empty where the task has no labels."
    )
    sampling_prob: float
    noise_multiplier: float | None = Field(description="Noise stddev / clip norm; null if off.")
    planned_steps: int = Field(description="Local steps that the plan gave this client.")
    charged_steps: int = Field(description="Local steps charged, whether or not they arrived.")
    epsilon: float | None = Field(description="Spent, at the report's delta; null if off.")
    num_nonfinite_examples: int = Field(description="Per-example gradients counted as zero.")


class RoundReport(_Section):
    """One round."""

    round: int = Field(description="Counts from 1.")
    cohort: list[str] = Field(description="Clients whose updates were aggregated.")
    seconds: float
    uplink_bytes: int = Field(description="Tensor bytes, all clients of the cohort together.")
    downlink_bytes: int
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


class EvaluationReport(_Section):
    """The held-out set and the final score on it."""

    num_examples: int
    metrics: dict[str, float] = Field(
        description="'loss' always; 'accuracy' for classification; 'perplexity' and "
        "'token_accuracy' for causal LM."
    )
    initial_metrics: dict[str, float] = Field(description="Before the first round.")
    majority_accuracy: float | None = Field(
        description="Share of the most frequent held-out label; null where there are no labels."
    )


class AdapterReport(_Section):
    """The adapter that the run ends in."""

    method: str
    aggregator: str
    rank: int
    alpha: float
    digest: str = Field(description="sha256 over the names, shapes and bytes of all its tensors.")
    base_model: str
    base_digest: str
    num_trainable_parameters: int
    adapted_modules: list[str]
    delta_norm: float = Field(description="Frobenius norm of the weight change, all modules.")
    path: str = Field(description="Folder of the PEFT export, relative to the report.")


class ReloadReport(_Section):
    """The exported adapter, loaded from disk by the peft library in another process."""

    metrics: dict[str, float]
    max_abs_difference: float = Field(description="Largest gap to the run's own final metrics.")
    peft_version: str


class SecondsReport(_Section):
    """Wall-clock seconds."""

    total: float
    calibration: float
    training: float
    evaluation: float


class Report(_Section):
    """A whole simulated run."""

    schema_version: Literal[1] = SCHEMA_VERSION
    name: str
    created_at: str = Field(description="UTC, ISO 8601.")
    config: dict[str, Any] = Field(description="The validated configuration, defaults filled in.")
    seeds: dict[str, int]
    versions: dict[str, str]
    hardware: dict[str, str]
    privacy: PrivacyReport
    clients: list[ClientReport]
    rounds: list[RoundReport]
    evaluation: EvaluationReport
    adapter: AdapterReport
    reload: ReloadReport
    seconds: SecondsReport
    uplink_bytes: int
    downlink_bytes: int
    notes: list[str] = Field(default_factory=list, description="What a reader should know.")
