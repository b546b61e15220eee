"""Records of the state as messages of the control plane."""

import json
from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from fedpeft.wire.v1 import adapters_pb2, budgets_pb2, clients_pb2, runs_pb2, server_pb2
from fedpeft_server.records import (
    AdapterRecord,
    AuditRecord,
    BudgetRecord,
    Client,
    EventRecord,
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


def adapter(record: AdapterRecord) -> adapters_pb2.Adapter:
    """Writes an adapter version."""
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
    )


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
