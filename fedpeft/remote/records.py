"""What a server says of its runs, clients, budgets and adapters, as plain values.

Times are in UTC. `fedpeft_server` has records of its own: those are what it keeps, these are what
it tells.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any


class RunStatus(StrEnum):
    """How far a run has come."""

    SUBMITTED = "submitted"
    PREPARING = "preparing"
    RUNNING = "running"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"

    @property
    def has_ended(self) -> bool:
        """Whether nothing happens any more, unless the run is resumed."""
        return self in (RunStatus.FINISHED, RunStatus.STOPPED, RunStatus.FAILED)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run.

    Attributes:
        clients: "remote" or "simulated".
        num_rounds_finished: Of `num_rounds`.
        submitted_by: Name in the submitter's certificate.
        reason: Why it failed or was stopped; empty otherwise.
        adapter: Digest of its newest adapter version; empty before the first.
    """

    run_id: str
    name: str
    status: RunStatus
    clients: str
    num_rounds: int
    num_rounds_finished: int
    submitted_at: datetime
    submitted_by: str
    reason: str
    adapter: str


@dataclass(frozen=True, kw_only=True)
class Participant:
    """A client of a run.

    Attributes:
        num_examples: Rows that it said it has.
        noise_multiplier: Of each of its local steps; None where the run has no privacy.
        num_rounds_planned: Rounds that it is planned for.
        num_updates: Rounds that its update is in.
        epsilon_spent: As it last reported; None where it reported none.
    """

    client_id: str
    num_examples: int
    noise_multiplier: float | None
    num_rounds_planned: int
    num_updates: int
    epsilon_spent: float | None


@dataclass(frozen=True, kw_only=True)
class Round:
    """One finished round.

    Attributes:
        cohort: Clients whose updates were aggregated.
        missing: Client → code of the reason why it was asked and is not in it.
        metrics: Held-out; empty where the round was not evaluated.
        adapter: Digest of the version that it made.
    """

    round: int
    cohort: tuple[str, ...]
    missing: Mapping[str, str]
    seconds: float
    metrics: Mapping[str, float]
    adapter: str
    uplink_bytes: int
    downlink_bytes: int


@dataclass(frozen=True, kw_only=True)
class RunDetails:
    """A run with all that is known of it.

    Attributes:
        config: The whole configuration.
        participants: Those that the caller may see.
    """

    run: Run
    config: Mapping[str, Any]
    rounds: tuple[Round, ...]
    participants: tuple[Participant, ...]


@dataclass(frozen=True, kw_only=True)
class RunEvent:
    """Something that happened in a run.

    Attributes:
        position: Counts from 1 within the run.
        kind: One of `fedpeft_server.events.KINDS`, or one of a newer server.
        round: None where it belongs to no round.
        client_id: None where it belongs to no client.
        body: What belongs to the kind.
    """

    position: int
    at: datetime
    kind: str
    round: int | None
    client_id: str | None
    body: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Client:
    """An enrolled client.

    Attributes:
        online: Whether its node was heard of lately.
        protocol: Version that it speaks.
        version: Of its fedpeft.
        certificate_serial: Of the certificate that it enrolled with, hex.
        last_seen: When it enrolled or last answered in a run, to within ten seconds.
    """

    client_id: str
    enrolled_at: datetime
    revoked_at: datetime | None
    online: bool
    protocol: int
    version: str
    certificate_serial: str
    last_seen: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Invitation:
    """What a client enrols with, once."""

    token: str
    expires_at: datetime


@dataclass(frozen=True, kw_only=True)
class Enrolment:
    """What a client that was enrolled needs to know.

    Attributes:
        fleet_address: host:port that its node connects to.
        server_certificate: DER certificate of the server, which signs plans.
        bundle_digest: Of the Flower app that the server runs.
    """

    client_id: str
    fleet_address: str
    server_certificate: bytes
    bundle_digest: str


@dataclass(frozen=True, kw_only=True)
class MirroredBudget:
    """A budget as its client last reported it; the client's own ledger is what counts."""

    client_id: str
    dataset: str
    epsilon_spent: float
    epsilon_budget: float
    delta: float
    ledger_head: str
    reported_at: datetime
    run_id: str
    round: int


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An adapter version.

    Attributes:
        round: 0 for the version that a run starts from.
        parent: Digest of the version that it was made from; None for a first one.
        participants: Clients whose updates are in it, from this round or an earlier one.
        epsilon: Client → ε after the round.
        exported: Whether it can be downloaded.
        status: "published" or "withdrawn".
        manifest_json: Signed, see `fedpeft.registry.manifest`; empty before the export, and in
            lists.
        aliases: Names that point at it.
        withdrawn_by: The removal request, or the operator, that withdrew it; None otherwise.
    """

    digest: str
    run_id: str
    round: int
    parent: str | None
    base_model: str
    base_digest: str
    participants: tuple[str, ...]
    epsilon: Mapping[str, float]
    metrics: Mapping[str, float]
    created_at: datetime
    exported: bool
    status: str
    manifest_json: str
    aliases: tuple[str, ...]
    withdrawn_by: str | None


@dataclass(frozen=True, kw_only=True)
class Alias:
    """A name that points at an adapter version.

    Attributes:
        adapter: Digest of the version.
        generation: Counts the changes of this alias, from 1.
    """

    name: str
    adapter: str
    run_id: str
    round: int
    generation: int
    changed_at: datetime
    changed_by: str


@dataclass(frozen=True, kw_only=True)
class LineageVersion:
    """A version as a relative of another.

    Attributes:
        parent: Digest of the version that it was made from; None for a first one.
        method: "federated", "imported", or the method of the removal that made it.
        cohort: Client of this round → fingerprint of the rows that it trained on; those that the
            caller may see.
        removal: The removal request that made it; None otherwise.
    """

    digest: str
    run_id: str
    round: int
    parent: str | None
    status: str
    method: str
    cohort: Mapping[str, str]
    created_at: datetime
    aliases: tuple[str, ...]
    removal: str | None


@dataclass(frozen=True, kw_only=True)
class Replica:
    """A serving process, as it last reported.

    Attributes:
        adapter: Digest of the version that it serves; None while there is none.
        fingerprint_json: See `fedpeft.registry.fingerprint`.
        problem: Why it does not serve what it should; empty otherwise.
    """

    replica_id: str
    alias: str
    adapter: str | None
    fingerprint_json: str
    problem: str
    reported_at: datetime
    operated_by: str


@dataclass(frozen=True, kw_only=True)
class ServerInfo:
    """A server, and who the caller is to it.

    Attributes:
        time: Its clock.
        fleet_address: host:port that nodes connect to.
        bundle_digest: Of the Flower app that it runs.
    """

    version: str
    oldest_protocol: int
    newest_protocol: int
    time: datetime
    fleet_address: str
    bundle_digest: str
    caller: str
    caller_roles: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class AuditEntry:
    """One entry of a server's audit log.

    Attributes:
        actor: Name in the caller's certificate; empty where there was none to be trusted.
        action: What was asked for.
        subject: A run, a client, an adapter; empty where it was about none.
        outcome: "begun", "ok", "unreceived", or a code of `fedpeft.wire.catalogue`.
        previous: Hash of the entry before.
        hash: Of this one.
        text: The entry as it was hashed.
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
