"""Removal requests as messages of the control plane, and what is asked for as an `Order`."""

import json
import re
from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from fedpeft.models.sources import unique_keys
from fedpeft.unlearning.plan import RemovalPlan
from fedpeft.wire.catalogue import Refused
from fedpeft.wire.v1 import removals_pb2
from fedpeft_server.records import RemovalEventRecord, RemovalRecord
from fedpeft_server.removals.planning import Wish
from fedpeft_server.services import fields
from fedpeft_server.services.translate import time

_REQUEST_ID = re.compile(r"[0-9a-f]{16}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PLACES = ("server", "client")
_MOST_RECORDS = 2**40
_LONGEST_SETTINGS = 2**16


def removal(record: RemovalRecord) -> removals_pb2.Removal:
    """Writes a request; neither its private key nor what the job returned leaves the server."""
    return removals_pb2.Removal(
        request_id=record.request_id,
        order=removals_pb2.RemovalOrder(
            adapter=record.adapter,
            client_id=record.client_id,
            place=record.place,
            method=record.method,
            num_records=record.num_records,
            settings_json=json.dumps(record.settings, sort_keys=True),
            void_guarantee=record.void_guarantee,
            private_job=record.private_job,
            deadline=time(record.deadline) if record.deadline else None,
        ),
        plan=plan(RemovalPlan.from_body(record.plan)),
        state=f"REMOVAL_STATE_{record.state.name}",
        reason=record.reason,
        requested_by=record.requested_by,
        created_at=time(record.created_at),
        updated_at=time(record.updated_at),
        records_digest=record.records_digest,
        job_public_key=record.job_public_key or b"",
        successor=record.successor or "",
        num_attempts=record.num_attempts,
        progress=record.progress,
    )


def plan(made: RemovalPlan) -> removals_pb2.RemovalPlan:
    """Writes a plan."""
    return removals_pb2.RemovalPlan(
        adapter=made.adapter,
        affected=made.affected,
        aliases=made.aliases,
        method=made.method,
        claim=made.claim,
        clean_ancestor=made.clean_ancestor or "",
        guarantee=made.guarantee,
        notes=made.notes,
        gate_json=json.dumps(made.gate, sort_keys=True),
    )


def event(record: RemovalEventRecord) -> removals_pb2.RemovalEvent:
    """Writes an event."""
    return removals_pb2.RemovalEvent(
        position=record.position,
        at=time(record.at),
        kind=record.kind,
        body_json=json.dumps(record.body),
    )


def wish(order: removals_pb2.RemovalOrder, asked_by: str) -> Wish:
    """Reads what is asked for, by whom.

    Raises:
        RemoteError: `invalid`, as by every function below.
    """
    if order.place not in _PLACES:
        raise Refused.INVALID.error(f"place is one of {', '.join(_PLACES)}; got {order.place!r}")
    return Wish(
        client_id=fields.client_id(order.client_id),
        asked_by=asked_by,
        place="client" if order.place == "client" else "server",
        method=fields.text("method", order.method, required=True),
        num_records=fields.between("num_records", order.num_records, 0, _MOST_RECORDS),
        settings=_settings(order.settings_json),
        void_guarantee=order.void_guarantee,
        private_job=order.private_job,
    )


def deadline(order: removals_pb2.RemovalOrder) -> datetime | None:
    """Reads until when it should be done."""
    if not order.HasField("deadline"):
        return None
    return moment(order.deadline)


def moment(read: Timestamp) -> datetime:
    """Reads a time."""
    try:
        return read.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise Refused.INVALID.error("the deadline is no time") from error


def request_id(value: str) -> str:
    """Reads the id of a request."""
    if _REQUEST_ID.fullmatch(value) is None:
        raise Refused.INVALID.error(f"a removal's id is 16 hex digits, got {value[:40]!r}")
    return value


def records_digest(value: str) -> str:
    """Reads the digest of the records."""
    if _DIGEST.fullmatch(value) is None:
        raise Refused.INVALID.error("the records' digest is 64 hex digits")
    return value


def json_object(name: str, text: str, longest: int) -> dict[str, Any]:
    """Reads JSON that is an object."""
    if len(text) > longest:
        raise Refused.INVALID.error(f"{name} has at most {longest} characters")
    try:
        found = json.loads(text, object_pairs_hook=unique_keys, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise Refused.INVALID.error(f"{name} is no JSON") from error
    if not isinstance(found, dict):
        raise Refused.INVALID.error(f"{name} must be a JSON object")
    return found


def _settings(text: str) -> dict[str, Any]:
    return json_object("settings_json", text, _LONGEST_SETTINGS) if text else {}


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
