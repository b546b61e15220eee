"""Protobuf messages of the control plane as the plain values of `records`."""

import json
from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from fedpeft.errors import ProtocolError
from fedpeft.remote import records
from fedpeft.wire.v1 import adapters_pb2, budgets_pb2, clients_pb2, runs_pb2, server_pb2


def run(read: runs_pb2.Run) -> records.Run:
    """Reads a run."""
    name = runs_pb2.RunStatus.Name(read.status).removeprefix("RUN_STATUS_").lower()
    try:
        status = records.RunStatus(name)
    except ValueError as error:
        raise ProtocolError(f"run {read.run_id} has the unknown status {name!r}") from error
    return records.Run(
        run_id=read.run_id,
        name=read.name,
        status=status,
        clients=read.clients,
        num_rounds=read.num_rounds,
        num_rounds_finished=read.rounds_finished,
        submitted_at=time(read.submitted_at),
        submitted_by=read.submitted_by,
        reason=read.reason,
        adapter=read.adapter,
    )


def run_details(read: runs_pb2.RunDetails) -> records.RunDetails:
    """Reads a run with all that is known of it."""
    return records.RunDetails(
        run=run(read.run),
        config=json_object(read.config_json),
        rounds=tuple(_round(entry) for entry in read.rounds),
        participants=tuple(
            records.Participant(
                client_id=entry.client_id,
                num_examples=entry.num_examples,
                noise_multiplier=(
                    entry.noise_multiplier if entry.HasField("noise_multiplier") else None
                ),
                num_rounds_planned=entry.num_rounds_planned,
                num_updates=entry.num_updates,
                epsilon_spent=entry.epsilon_spent if entry.HasField("epsilon_spent") else None,
            )
            for entry in read.participants
        ),
    )


def run_event(read: runs_pb2.RunEvent) -> records.RunEvent:
    """Reads an event."""
    return records.RunEvent(
        position=read.position,
        at=time(read.at),
        kind=read.kind,
        round=read.round or None,
        client_id=read.client_id or None,
        body=json_object(read.body_json),
    )


def client(read: clients_pb2.Client) -> records.Client:
    """Reads a client."""
    return records.Client(
        client_id=read.client_id,
        enrolled_at=time(read.enrolled_at),
        revoked_at=time(read.revoked_at) if read.HasField("revoked_at") else None,
        online=read.online,
        protocol=read.protocol,
        version=read.version,
        certificate_serial=read.certificate_serial,
        last_seen=time(read.last_seen) if read.HasField("last_seen") else None,
    )


def budget(read: budgets_pb2.MirroredBudget) -> records.MirroredBudget:
    """Reads a budget."""
    return records.MirroredBudget(
        client_id=read.client_id,
        dataset=read.dataset,
        epsilon_spent=read.epsilon_spent,
        epsilon_budget=read.epsilon_budget,
        delta=read.delta,
        ledger_head=read.ledger_head,
        reported_at=time(read.reported_at),
        run_id=read.run_id,
        round=read.round,
    )


def adapter(read: adapters_pb2.Adapter) -> records.Adapter:
    """Reads an adapter version."""
    return records.Adapter(
        digest=read.digest,
        run_id=read.run_id,
        round=read.round,
        parent=read.parent or None,
        base_model=read.base_model,
        base_digest=read.base_digest,
        participants=tuple(read.participants),
        epsilon=dict(read.epsilon),
        metrics=dict(read.metrics),
        created_at=time(read.created_at),
        exported=read.exported,
        status=read.status,
        manifest_json=read.manifest_json,
        aliases=tuple(read.aliases),
        withdrawn_by=read.withdrawn_by or None,
    )


def alias(read: adapters_pb2.Alias) -> records.Alias:
    """Reads an alias."""
    return records.Alias(
        name=read.name,
        adapter=read.adapter,
        run_id=read.run_id,
        round=read.round,
        generation=read.generation,
        changed_at=time(read.changed_at),
        changed_by=read.changed_by,
    )


def lineage_version(read: adapters_pb2.LineageVersion) -> records.LineageVersion:
    """Reads a relative of a version."""
    return records.LineageVersion(
        digest=read.digest,
        run_id=read.run_id,
        round=read.round,
        parent=read.parent or None,
        status=read.status,
        method=read.method,
        cohort=dict(read.cohort),
        created_at=time(read.created_at),
        aliases=tuple(read.aliases),
        removal=read.removal or None,
    )


def replica(read: adapters_pb2.Replica) -> records.Replica:
    """Reads what a replica said last."""
    return records.Replica(
        replica_id=read.replica_id,
        alias=read.alias,
        adapter=read.adapter or None,
        fingerprint_json=read.fingerprint_json,
        problem=read.problem,
        reported_at=time(read.reported_at),
        operated_by=read.operated_by,
    )


def server_info(read: server_pb2.ServerInfo, host: str) -> records.ServerInfo:
    """Reads what a server says of itself; `host` is where it was called."""
    return records.ServerInfo(
        version=read.version,
        oldest_protocol=read.oldest_protocol,
        newest_protocol=read.newest_protocol,
        time=time(read.time),
        fleet_address=fleet_address(read.fleet_address, host),
        bundle_digest=read.bundle_digest,
        caller=read.caller,
        caller_roles=frozenset(read.caller_roles),
    )


def enrolment(read: clients_pb2.Enrolment, host: str) -> records.Enrolment:
    """Reads what a client needs to know; `host` is where the server was called."""
    return records.Enrolment(
        client_id=read.client_id,
        fleet_address=fleet_address(read.fleet_address, host),
        server_certificate=read.server_certificate,
        bundle_digest=read.bundle_digest,
    )


def audit_entry(read: server_pb2.AuditEntry) -> records.AuditEntry:
    """Reads an entry of the audit log."""
    return records.AuditEntry(
        position=read.position,
        at=time(read.at),
        actor=read.actor,
        action=read.action,
        subject=read.subject,
        outcome=read.outcome,
        previous=read.previous,
        hash=read.hash,
        text=read.text,
    )


def fleet_address(address: str, host: str) -> str:
    """Returns where nodes connect; an empty host means the one that was called."""
    shown = f"[{host}]" if ":" in host else host
    return f"{shown}{address}" if address.startswith(":") else address


def time(read: Timestamp) -> datetime:
    """Reads a time in UTC."""
    return read.ToDatetime(tzinfo=UTC)


def _round(read: runs_pb2.RoundRecord) -> records.Round:
    return records.Round(
        round=read.round,
        cohort=tuple(read.cohort),
        missing=dict(read.missing),
        seconds=read.seconds,
        metrics=dict(read.metrics),
        adapter=read.adapter,
        uplink_bytes=read.uplink_bytes,
        downlink_bytes=read.downlink_bytes,
    )


def json_object(text: str) -> dict[str, Any]:
    """Reads JSON that is an object; an empty text is an empty one.

    Raises:
        ProtocolError: If it is something else.
    """
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise ProtocolError("the server sent JSON that cannot be read") from error
    if not isinstance(found, dict):
        raise ProtocolError("the server sent JSON that is no object")
    return found
