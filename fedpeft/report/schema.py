"""The schema of report.json; `fedpeft report schema` prints it as JSON Schema."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fedpeft.federated.records import RoundReport as RoundReport

SCHEMA_VERSION: Literal[1] = 1


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PrivacyReport(_Section):
    """What is guaranteed to whom."""

    enabled: bool = Field(description="False: the run gives no privacy guarantee at all.")
    insecure_seeded_noise: bool = Field(
        description="True: noise and sampling came from a seed, so whoever knows it can undo them."
    )
    mechanism: Literal["dp-sgd", "client-level"] = Field(
        default="dp-sgd", description="Where the noise was added, see `fedpeft config schema`."
    )
    privacy_unit: Literal["example", "client"] = Field(
        default="example", description="What a neighbouring data set differs in."
    )
    neighboring_relation: Literal["add_or_remove_one", "zero_out_one"] = Field(
        default="add_or_remove_one",
        description="How neighbours differ: one has one unit more than the other, or one unit's "
        "update is zero.",
    )
    sampling: Literal["poisson", "none"] = Field(
        default="poisson",
        description="'poisson': each row enters a batch independently of all others, and epsilon "
        "counts on it. 'none': epsilon counts on no sampling.",
    )
    accountant: str = Field(default="PLD", description="Which accountant computed every epsilon.")
    target_epsilon: float | None = Field(
        default=None, description="What the plan lets each client spend in this run."
    )
    delta: float | None = Field(default=None, description="The delta of every epsilon here.")
    l2_clip_norm: float | None = Field(
        default=None, description="Largest L2 norm of one unit's contribution, all layers together."
    )
    ledger: str | None = Field(
        default=None,
        description="The ledger that was charged; a plain name is in the run's folder.",
    )
    ledger_head: str | None = Field(
        default=None,
        description="Entries and last hash of the ledger after the run, for `fedpeft budget verify "
        "--expect`.",
    )


class ClientReport(_Section):
    """One client over the whole run. Everything but epsilon would stay with the client."""

    client_id: str = Field(description="Unique in the report.")
    num_examples: int = Field(description="Training rows the client holds.")
    weight: float = Field(description="Fixed public weight; the weights of all clients sum to 1.")
    label_counts: dict[str, int] = Field(
        description="Rows by label; empty where the task has no labels."
    )
    sampling_prob: float = Field(description="Chance of each row to enter one local step's batch.")
    noise_multiplier: float | None = Field(description="Noise stddev / clip norm; null if off.")
    planned_steps: int = Field(
        description="Releases that the plan gave this client: local steps, or with 'client-level' "
        "rounds."
    )
    charged_steps: int = Field(description="Releases charged, whether or not they arrived.")
    epsilon: float | None = Field(
        description="Spent on the client's rows, at the report's delta, in all runs that the "
        "ledger knows; null if off."
    )
    budget_epsilon: float | None = Field(
        description="What the ledger allows on these rows in all; null if off."
    )
    num_nonfinite_examples: int = Field(description="Per-example gradients counted as zero.")


class EvaluationReport(_Section):
    """The held-out set and the final score on it."""

    num_examples: int = Field(description="Held-out rows.")
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

    method: str = Field(description="Adapter method, by its name in the configuration.")
    aggregator: str = Field(description="Aggregator, by its name in the configuration.")
    rank: int = Field(description="Inner dimension of the two factors.")
    alpha: float = Field(description="LoRA scaling numerator.")
    digest: str = Field(description="sha256 over the names, shapes and bytes of all its tensors.")
    base_model: str = Field(description="Base model as the configuration names it.")
    base_digest: str = Field(description="Digest of the base model's weights.")
    num_trainable_parameters: int = Field(description="Numbers that clients train.")
    adapted_modules: list[str] = Field(description="Modules of the base model that are adapted.")
    delta_norm: float = Field(description="Frobenius norm of the weight change, all modules.")
    path: str = Field(description="Folder of the PEFT export, relative to the report.")


class ReloadReport(_Section):
    """The exported adapter, loaded from disk by the peft library in another process."""

    metrics: dict[str, float] = Field(description="The held-out metrics, computed again.")
    max_abs_difference: float = Field(description="Largest gap to the run's own final metrics.")
    peft_version: str = Field(description="Version of the peft library that loaded it.")


class SecondsReport(_Section):
    """Wall-clock seconds."""

    total: float = Field(description="The whole run.")
    calibration: float = Field(description="Finding each client's noise multiplier.")
    training: float = Field(description="Local training, all clients.")
    evaluation: float = Field(description="Scoring the held-out set.")


class Report(_Section):
    """A whole simulated run."""

    schema_version: Literal[1] = Field(
        default=SCHEMA_VERSION, description="Raised when an old reader would misread the file."
    )
    name: str = Field(description="The run's name.")
    created_at: str = Field(description="UTC, ISO 8601.")
    config: dict[str, Any] = Field(description="The validated configuration, defaults filled in.")
    seeds: dict[str, int] = Field(description="Seeds of everything that is not private noise.")
    versions: dict[str, str] = Field(description="Versions of the software that ran.")
    hardware: dict[str, str] = Field(description="The machine, in words.")
    privacy: PrivacyReport = Field(description="What is guaranteed to whom.")
    clients: list[ClientReport] = Field(description="Every client of the run.")
    rounds: list[RoundReport] = Field(description="Every round, in order.")
    evaluation: EvaluationReport = Field(description="The final score on the held-out set.")
    adapter: AdapterReport = Field(description="The adapter that the run ends in.")
    reload: ReloadReport = Field(description="The exported adapter, loaded again and scored.")
    seconds: SecondsReport = Field(description="Where the time went.")
    uplink_bytes: int = Field(description="Tensor bytes sent by clients, all rounds together.")
    downlink_bytes: int = Field(description="Tensor bytes sent to clients, all rounds together.")
    notes: list[str] = Field(default_factory=list, description="What a reader should know.")
