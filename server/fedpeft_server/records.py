"""What the coordinator keeps, as its parts hand it to each other.

Times are UTC and carry their zone. Every digest is a sha256 in hex. `artifact` names content in the
artifact store, every other digest names tensors or bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Literal, TypeAlias

from fedpeft.errors import PrivacyError

JsonValue: TypeAlias = (
    "str | int | float | bool | Sequence[JsonValue] | Mapping[str, JsonValue] | None"
)
"""What JSON can say."""


@dataclass(frozen=True, kw_only=True)
class Client:
    """A client that has enrolled.

    Attributes:
        client_id: The name in its certificate.
        certificate_serial: Of the certificate that it enrolled with last, hex.
        node_public_key: Of its Flower node, PEM.
        protocol: That it speaks.
        version: Of its fedpeft.
        enrolled_at: When this node key was first enrolled.
        revoked_at: None while it may take part.
        last_seen: When it last called; None before it ever did.
    """

    client_id: str
    certificate_serial: str
    node_public_key: bytes
    protocol: int
    version: str
    enrolled_at: datetime
    revoked_at: datetime | None = None
    last_seen: datetime | None = None


class RunStatus(StrEnum):
    """Where a run stands."""

    SUBMITTED = "submitted"
    PREPARING = "preparing"
    RUNNING = "running"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A run as it was submitted, and where it stands.

    Attributes:
        config_json: The whole configuration.
        clients: Whether enrolled clients or the coordinator's own actors train. "removal" and
            "import": nobody does, the one version was made by a removal or came from elsewhere;
            such a run is finished from the start, and round 1 is that version.
        reason: Why it failed or was stopped; empty otherwise.
        submitted_by: The name in the submitter's certificate.
        held_out: Artifact with the held-out rows; None where the configuration names none.
        held_out_suffix: Says their format: `.jsonl`, `.csv`, `.parquet`, or empty.
        start_from: Digest of the version that is its round 0; None: drawn from its seed.
    """

    run_id: str
    name: str
    config_json: str
    clients: Literal["remote", "simulated", "removal", "import"]
    status: RunStatus
    num_rounds: int
    submitted_at: datetime
    submitted_by: str
    reason: str = ""
    held_out: str | None = None
    held_out_suffix: str = ""
    start_from: str | None = None


@dataclass(frozen=True, kw_only=True)
class Participant:
    """What a run plans for one client; it stays for the whole run.

    Attributes:
        num_examples: Rows that it said it has.
        noise_multiplier: In each local step; None where the run has no privacy.
        expected_batch_size: Public divisor of the summed gradients.
        weight: Of its updates in the mean.
        num_rounds_planned: Rounds that it is in.
        dataset: Fingerprint of its rows.

    Raises:
        PrivacyError: If a number is NaN or negative.
    """

    client_id: str
    num_examples: int
    noise_multiplier: float | None
    expected_batch_size: float
    weight: float
    num_rounds_planned: int
    dataset: str

    def __post_init__(self) -> None:
        _refuse_odd(
            noise_multiplier=self.noise_multiplier,
            expected_batch_size=self.expected_batch_size,
            weight=self.weight,
        )


@dataclass(frozen=True, kw_only=True)
class RunPlanRecord:
    """What was fixed for a whole run before its first round.

    Attributes:
        terms_json: Of `fedpeft.federated.terms.RunTerms`.
        cohorts: Clients of each round; the first is that of round 1.
    """

    terms_json: str
    participants: tuple[Participant, ...]
    cohorts: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class UpdateRecord:
    """An update that a client sent for the open round.

    Attributes:
        plan_digest: Of the plan's bytes that it answers.
        update_digest: Of its tensors.
        artifact: Holds the tensors.
        envelope: The client's signed reply.
    """

    run_id: str
    round: int
    client_id: str
    plan_digest: str
    update_digest: str
    artifact: str
    size_bytes: int
    received_at: datetime
    envelope: bytes


@dataclass(frozen=True, kw_only=True)
class BudgetRecord:
    """Where a client said that its budget stands.

    Attributes:
        dataset: Fingerprint of its rows.
        ledger_head: Of its own ledger, `count:hash`.
        run_id: In whose update it said so.

    Raises:
        PrivacyError: If an epsilon is NaN or negative, or delta does not lie in (0, 1).
    """

    client_id: str
    dataset: str
    epsilon_spent: float
    epsilon_budget: float
    delta: float
    ledger_head: str
    reported_at: datetime
    run_id: str
    round: int

    def __post_init__(self) -> None:
        _refuse_odd(epsilon_spent=self.epsilon_spent, epsilon_budget=self.epsilon_budget)
        if not 0 < self.delta < 1:
            raise PrivacyError(f"delta must lie in (0, 1), got {self.delta!r}")


@dataclass(frozen=True, kw_only=True)
class RoundRecord:
    """A finished round.

    Attributes:
        round: Counts from 1.
        cohort: Clients whose updates are in it.
        missing: Clients that were asked and are not in it → reason's code.
        seconds: From the first plan sent to the new adapter.
        metrics: Of the new adapter on held-out rows.
        diagnostics: Of the aggregation.
        update_norms: Client → l2 norm of its update.
        adapter: Digest of the version that it made.
    """

    round: int
    cohort: tuple[str, ...]
    missing: Mapping[str, str]
    seconds: float
    metrics: Mapping[str, float]
    diagnostics: Mapping[str, float]
    update_norms: Mapping[str, float]
    adapter: str
    uplink_bytes: int
    downlink_bytes: int
    finished_at: datetime


@dataclass(frozen=True, kw_only=True)
class ExportedFile:
    """One file of an export in PEFT format; its content is the artifact of that digest."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class AdapterRecord:
    """One version of an adapter.

    Two runs, or two rounds that changed nothing, may have versions of one digest: run and round
    tell versions apart.

    Attributes:
        digest: Of its tensors.
        round: That made it; 0 is what a run starts from.
        parent: Digest of the version that it was made from; None for a first one.
        artifact: Holds its tensors as safetensors.
        participants: Clients whose updates are in it, from this round or an earlier one.
        epsilon: Participant → epsilon after the round.
        export: File name → file; None until it was exported.
        status: A withdrawn version is served, deployed and trained on no more.
        manifest_json: Signed, as `fedpeft.registry.manifest` says; None until it was exported.
        withdrawn_by: The removal request, or the operator, that withdrew it.

    Raises:
        PrivacyError: If an epsilon is NaN or negative.
    """

    digest: str
    run_id: str
    round: int
    parent: str | None
    base_model: str
    base_digest: str
    artifact: str
    participants: tuple[str, ...]
    epsilon: Mapping[str, float]
    metrics: Mapping[str, float]
    created_at: datetime
    export: Mapping[str, ExportedFile] | None = None
    status: Literal["published", "withdrawn"] = "published"
    manifest_json: str | None = None
    withdrawn_by: str | None = None

    def __post_init__(self) -> None:
        _refuse_odd(**{f"epsilon of {client}": value for client, value in self.epsilon.items()})


@dataclass(frozen=True, kw_only=True)
class AliasRecord:
    """A name that points at a version.

    Attributes:
        digest: Of the version, which run and round tell from another of the same tensors.
        generation: Counts the changes of this alias, from 1.
    """

    name: str
    digest: str
    run_id: str
    round: int
    generation: int
    changed_at: datetime
    changed_by: str


@dataclass(frozen=True, kw_only=True)
class ReplicaRecord:
    """What a serving process said last.

    Attributes:
        adapter: Digest of the version that answers requests; empty while there is none.
        fingerprint_json: Of its outputs on the probes; see `fedpeft.registry.fingerprint`.
        problem: Why the version that it should serve is not served; empty otherwise.
        operated_by: The name in its certificate.
    """

    replica_id: str
    alias: str
    adapter: str
    fingerprint_json: str
    problem: str
    operated_by: str
    reported_at: datetime


class RemovalState(StrEnum):
    """Where a removal request stands."""

    RECEIVED = "received"
    PLANNED = "planned"
    RUNNING = "running"
    VERIFYING = "verifying"
    PUBLISHED = "published"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, kw_only=True)
class RemovalRecord:
    """A removal request and where it stands.

    Attributes:
        reason: Why it failed or was cancelled; empty otherwise.
        client_id: Whose data is to be forgotten.
        adapter: Digest of the version that the job starts from, of this run and round.
        place: Whether the job runs here, on records that were sent sealed, or at the client.
        records_digest: sha256 over a salt that the requester keeps, and the records.
        settings: Of the method and the gate; empty: the defaults.
        plan: `fedpeft.unlearning.plan.RemovalPlan` as JSON.
        job_public_key: X25519, raw; None once the job has ended, or where none is needed.
        job_private_key: The same; never leaves the server.
        sealed: Artifact with the sealed records; None before they came and after the job.
        progress: Share of the job that is done, in [0, 1].
        result_artifact: Successor's tensors, before and after they are published.
        result: `fedpeft.unlearning.job.JobResult` without the tensors; None before the job's end.
        successor: Digest of the version that was published.
        receipt_json: Signed; of a request that ended.
    """

    request_id: str
    state: RemovalState
    client_id: str
    adapter: str
    run_id: str
    round: int
    place: Literal["server", "client"]
    method: str
    num_records: int
    records_digest: str
    settings: Mapping[str, JsonValue]
    void_guarantee: bool
    private_job: bool
    deadline: datetime | None
    plan: Mapping[str, JsonValue]
    requested_by: str
    created_at: datetime
    updated_at: datetime
    reason: str = ""
    job_public_key: bytes | None = None
    job_private_key: bytes | None = field(default=None, repr=False)
    sealed: str | None = None
    num_attempts: int = 0
    progress: float = 0.0
    result_artifact: str | None = None
    result: Mapping[str, JsonValue] | None = None
    successor: str | None = None
    receipt_json: str | None = None


@dataclass(frozen=True, kw_only=True)
class RemovalEventRecord:
    """Something that happened to a removal request, for those who watch it.

    Attributes:
        position: Counts from 1 within the request.
    """

    position: int
    request_id: str
    at: datetime
    kind: str
    body: Mapping[str, JsonValue]


@dataclass(frozen=True, kw_only=True)
class EventRecord:
    """Something that happened in a run, for those who watch it.

    Attributes:
        position: Counts from 1 within the run.
    """

    position: int
    run_id: str
    at: datetime
    kind: str
    round: int | None
    client_id: str | None
    body: Mapping[str, JsonValue]


@dataclass(frozen=True, kw_only=True)
class AuditRecord:
    """One entry of the audit log.

    Attributes:
        position: Counts from 1.
        actor: Who: the name in a certificate, or a part of the server.
        action: What was asked.
        subject: On what.
        outcome: `ok`, or the code of the refusal.
        previous: Hash of the entry before.
        hash: Of this one.
        text: The whole entry as one line of JSON, its details among it; the hash is over this
            text without the hash.
    """

    position: int
    at: datetime
    actor: str
    action: str
    subject: str
    outcome: str
    previous: str
    hash: str
    text: str


def _refuse_odd(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not value >= 0:
            raise PrivacyError(f"{name} must not be negative or NaN, got {value!r}")
