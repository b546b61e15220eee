"""What a server says of removal requests, as plain values. Times are in UTC."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from fedpeft.unlearning.plan import RemovalPlan


class RemovalState(StrEnum):
    """How far a removal has come."""

    RECEIVED = "received"
    PLANNED = "planned"
    RUNNING = "running"
    VERIFYING = "verifying"
    PUBLISHED = "published"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def has_ended(self) -> bool:
        """Whether nothing is done for it any more."""
        return self in (RemovalState.PUBLISHED, RemovalState.FAILED, RemovalState.CANCELLED)


@dataclass(frozen=True, kw_only=True)
class RemovalOrder:
    """What is asked for.

    Attributes:
        adapter: An alias, or at least 8 leading hex digits of a digest; of a request that was
            made: the whole digest of the version that the job starts from.
        client_id: Whose data it is.
        num_records: To be forgotten.
        place: Where the job runs: "server", on records that are sent sealed, or "client".
        method: One of `fedpeft.unlearning.plan.CLAIM_OF`.
        settings: "unlearning": of the method, as `UnlearningConfig`; "gate": thresholds, as
            `GateConfig`; "precisions": at which it is verified. Empty: the defaults.
        void_guarantee: Operator: the adapter's privacy guarantee may be given up.
        private_job: The job is private and charged to the client's own ledger; at the client only.
        deadline: Requests with an earlier one go first.
    """

    adapter: str
    client_id: str
    num_records: int
    place: Literal["server", "client"] = "server"
    method: str = "loku"
    settings: Mapping[str, Any] = field(default_factory=dict)
    void_guarantee: bool = False
    private_job: bool = False
    deadline: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Removal:
    """A removal request, and where it stands.

    Attributes:
        reason: Why it failed or was cancelled; empty otherwise.
        requested_by: Name in the requester's certificate.
        records_digest: Over the records and a salt that the requester keeps.
        job_public_key: X25519, that the records are to be sealed to; empty where none are waited
            for.
        successor: Digest of the version that was published; empty before.
        progress: Share of the job that is done, in [0, 1].
    """

    request_id: str
    order: RemovalOrder
    plan: RemovalPlan
    state: RemovalState
    reason: str
    requested_by: str
    created_at: datetime
    updated_at: datetime
    records_digest: str
    job_public_key: bytes
    successor: str
    num_attempts: int
    progress: float


@dataclass(frozen=True, kw_only=True)
class RemovalEvent:
    """Something that happened to a request.

    Attributes:
        position: Counts from 1 within the request.
        kind: One of `fedpeft_server.removals.events.KINDS`, or one of a newer server.
        body: What belongs to the kind.
    """

    position: int
    at: datetime
    kind: str
    body: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class RemovalJob:
    """What is needed to run a request's job, beside the rows.

    Attributes:
        order_json: `fedpeft.unlearning.order.JobOrder` as JSON.
        adapter: Tensors of the version that it starts from, as safetensors.
    """

    order_json: str
    adapter: bytes
