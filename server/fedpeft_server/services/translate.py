"""Records of the state as messages of the control plane."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from fedpeft.wire.v1 import adapters_pb2, budgets_pb2, clients_pb2, runs_pb2, server_pb2
from fedpeft_server.records import (
    AdapterRecord,
    AliasRecord,
    AuditRecord,
    BudgetRecord,
    Client,
    EventRecord,
    ReplicaRecord,
    RoundRecord,
    RunRecord,
)


def run(record: RunRecord, newest: AdapterRecord | None) -> runs_pb2.Run:
    """Writes a run; `newest` is its newest adapter version."""
    return runs_pb2.Run(
        run_id=record.run_id,
        name=record.name,
        status=f"RUN_STATUS_{record.status.name}",
        clients=record.clients,
        num_rounds=record.num_rounds,
        rounds_finished=newest.round if newest else 0,
        submitted_at=time(record.submitted_at),
        submitted_by=record.submitted_by,
        reason=record.reason,
        adapter=newest.digest if newest else "",
    )


def finished_round(record: RoundRecord) -> runs_pb2.RoundRecord:
    """Writes a finished round."""
    return runs_pb2.RoundRecord(
        round=record.round,
        cohort=record.cohort,
        missing=record.missing,
        seconds=record.seconds,
        metrics=record.metrics,
        adapter=record.adapter,
        uplink_bytes=record.uplink_bytes,
        downlink_bytes=record.downlink_bytes,
    )


def event(record: EventRecord) -> runs_pb2.RunEvent:
    """Writes an event."""
    return runs_pb2.RunEvent(
        position=record.position,
        at=time(record.at),
        kind=record.kind,
        round=record.round or 0,
        client_id=record.client_id or "",
        body_json=json.dumps(record.body),
    )


def client(record: Client, *, online: bool) -> clients_pb2.Client:
    """Writes a client."""
    return clients_pb2.Client(
        client_id=record.client_id,
        enrolled_at=time(record.enrolled_at),
        revoked_at=time(record.revoked_at) if record.revoked_at else None,
        online=online,
        protocol=record.protocol,
        version=record.version,
        certificate_serial=record.certificate_serial,
        last_seen=time(record.last_seen) if record.last_seen else None,
    )


def budget(record: BudgetRecord) -> budgets_pb2.MirroredBudget:
    """Writes a mirrored budget."""
    return budgets_pb2.MirroredBudget(
        client_id=record.client_id,
        dataset=record.dataset,
        epsilon_spent=record.epsilon_spent,
        epsilon_budget=record.epsilon_budget,
        delta=record.delta,
        ledger_head=record.ledger_head,
        reported_at=time(record.reported_at),
        run_id=record.run_id,
        round=record.round,
    )


def adapter(
    record: AdapterRecord, aliases: Sequence[AliasRecord], *, manifest: bool = True
) -> adapters_pb2.Adapter:
    """Writes an adapter version; a list of many goes without manifests."""
    return adapters_pb2.Adapter(
        digest=record.digest,
        run_id=record.run_id,
        round=record.round,
        parent=record.parent or "",
        base_model=record.base_model,
        base_digest=record.base_digest,
        participants=record.participants,
        epsilon=record.epsilon,
        metrics=record.metrics,
        created_at=time(record.created_at),
        exported=record.export is not None,
        status=record.status,
        manifest_json=record.manifest_json or "" if manifest else "",
        aliases=_aliases_of(record, aliases),
        withdrawn_by=record.withdrawn_by or "",
    )


def lineage_version(
    record: AdapterRecord, cohort: Mapping[str, str], aliases: Sequence[AliasRecord]
) -> adapters_pb2.LineageVersion:
    """Writes a version as a relative of another; `cohort` is what the caller may see of it."""
    body = json.loads(record.manifest_json)["body"] if record.manifest_json else {}
    return adapters_pb2.LineageVersion(
        digest=record.digest,
        run_id=record.run_id,
        round=record.round,
        parent=record.parent or "",
        status=record.status,
        method=body.get("method", "federated"),
        cohort=cohort,
        created_at=time(record.created_at),
        aliases=_aliases_of(record, aliases),
        removal=body.get("removal", ""),
    )


def alias(record: AliasRecord) -> adapters_pb2.Alias:
    """Writes an alias."""
    return adapters_pb2.Alias(
        name=record.name,
        adapter=record.digest,
        run_id=record.run_id,
        round=record.round,
        generation=record.generation,
        changed_at=time(record.changed_at),
        changed_by=record.changed_by,
    )


def replica(record: ReplicaRecord) -> adapters_pb2.Replica:
    """Writes what a replica said last."""
    return adapters_pb2.Replica(
        replica_id=record.replica_id,
        alias=record.alias,
        adapter=record.adapter,
        fingerprint_json=record.fingerprint_json,
        problem=record.problem,
        reported_at=time(record.reported_at),
        operated_by=record.operated_by,
    )


def _aliases_of(record: AdapterRecord, aliases: Sequence[AliasRecord]) -> list[str]:
    return [a.name for a in aliases if (a.run_id, a.round) == (record.run_id, record.round)]


def audit_entry(record: AuditRecord) -> server_pb2.AuditEntry:
    """Writes an entry of the audit log."""
    return server_pb2.AuditEntry(
        position=record.position,
        at=time(record.at),
        actor=record.actor,
        action=record.action,
        subject=record.subject,
        outcome=record.outcome,
        previous=record.previous,
        hash=record.hash,
        text=record.text,
    )


def time(moment: datetime) -> Timestamp:
    """Writes a time."""
    written = Timestamp()
    written.FromDatetime(moment)
    return written
