"""Odd text in every field of every request: refused in words, or harmless; never a path."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from fedpeft.wire.v1 import (
    adapters_pb2,
    budgets_pb2,
    clients_pb2,
    removals_pb2,
    runs_pb2,
    server_pb2,
)
from fedpeft_server.access.rules import RULES
from tests.server.control_rig import Rig
from tests.server.raw_calls import WIRE, send_signed
from tests.server.runs import config, submitted

ODD = [
    "../../../etc/passwd",
    "/etc/passwd",
    "..",
    "a\0b",
    "a\nb: forged=1",
    "\x1b[2J",
    "\u202egnp.exe",
    "'; DROP TABLE runs; --",
    "%s%n{0}",
    "x" * 100_000,
    "\U0001f600" * 300,
    "",
]
MODULES = (runs_pb2, clients_pb2, budgets_pb2, adapters_pb2, removals_pb2, server_pb2)
CALLER = dict.fromkeys(
    ("Clients/EnrolClient", "Removals/SubmitSuccessor", "Removals/GetJob"), "clinic"
)
# Bytes that are kept as they are, under the name of their content.
KEPT = ("SubmitRunRequest", "held_out")


def requests() -> Iterator[tuple[str, Descriptor, FieldDescriptor]]:
    """Every text field, and every field of bytes, of every request of ours."""
    for module in MODULES:
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                for field in method.input_type.fields:
                    if field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
                        yield f"{service.name}/{method.name}", method.input_type, field


def sound(kind: Descriptor) -> Message:
    """A request that would do, but for the field that the test fills."""
    request = GetMessageClass(kind)()
    values: dict[str, object] = {
        "config_json": json.dumps(config()),
        "idempotency_key": "key",
        "run_id": "0" * 16,
        "client_id": "nobody",
        "adapter": "0" * 16,
        "reason": "why",
        "valid_hours": 1,
        "limit": 1,
        "protocol": 1,
        "version": "0.1.0",
        "node_public_key": b"none",
        "request_id": "0" * 16,
        "records_digest": "0" * 64,
        "place": "server",
        "method": "loku",
        "num_records": 3,
    }
    for field in kind.fields:
        value = values.get(field.name)
        if isinstance(value, str) and field.type == FieldDescriptor.TYPE_BYTES:
            value = value.encode()
        if value is not None:
            setattr(request, field.name, value)
        elif field.name == "order":
            request.order.MergeFrom(sound(field.message_type))  # type: ignore[attr-defined]
    return request


CASES = [
    pytest.param(method, kind, field, id=f"{method}.{field.name}")
    for method, kind, field in requests()
]


def files(folder: Path) -> set[Path]:
    """What there is on disk, but for the artifacts, which are named by their content."""
    return {path for path in folder.rglob("*") if "artifacts" not in path.parts}


@pytest.mark.parametrize(("method", "kind", "field"), CASES)
def test_odd_text_is_refused(
    rig: Rig, method: str, kind: Descriptor, field: FieldDescriptor
) -> None:
    before = files(rig.folder)
    refusing = {"invalid", "bad-token", "no-such-run", "no-such-client", "no-such-adapter"}
    refusing |= {"no-such-removal", "never-trained"}
    refusing.add("already-exists")  # as a second run under the key of the first
    for text in ODD:
        request = sound(kind)
        is_text = field.type == FieldDescriptor.TYPE_STRING
        setattr(request, field.name, text if is_text else text.encode())
        code = send_signed(rig, CALLER.get(method, "operator"), method, request).code
        harmless = (kind.name, field.name) == KEPT or text.isprintable()
        assert code in refusing or (code == "ok" and harmless), (text[:40], code)
    assert files(rig.folder) == before


def test_every_request_was_tried() -> None:
    tried = {param.values[0] for param in CASES}
    ours = {path.removeprefix(WIRE) for path in RULES if path.startswith(WIRE)}
    assert ours - tried == {
        "Runs/ListRuns",
        "Clients/ListClients",
        "Adapters/ListAliases",
        "Server/GetServer",
        "Server/ListAudit",
    }, "these have no text"


def test_invited_names_are_plain(rig: Rig) -> None:
    for name in ("../x", "a/b", "a\\b", ".hidden", "-rf", " a", "a ", "x" * 65, "a\tb"):
        request = clients_pb2.InviteClientRequest(client_id=name, valid_hours=1)
        assert send_signed(rig, "operator", "Clients/InviteClient", request).code == "invalid"
    for name in ("clinic", "St. Mary's (north)", "klinik-münchen", "病院"):
        request = clients_pb2.InviteClientRequest(client_id=name, valid_hours=1)
        assert send_signed(rig, "operator", "Clients/InviteClient", request).code == "ok"


@pytest.mark.parametrize("hours", [0, 24 * 90 + 1, 2**32 - 1])
def test_tokens_do_not_last_for_ever(rig: Rig, hours: int) -> None:
    request = clients_pb2.InviteClientRequest(client_id="clinic", valid_hours=hours)
    assert send_signed(rig, "operator", "Clients/InviteClient", request).code == "invalid"


@pytest.mark.parametrize("limit", [0, 1001, 2**32 - 1])
def test_the_log_comes_in_pages(rig: Rig, limit: int) -> None:
    request = server_pb2.ListAuditRequest(limit=limit)
    assert send_signed(rig, "auditor", "Server/ListAudit", request).code == "invalid"


@pytest.mark.parametrize("after", [2**63, 2**64 - 1])
def test_positions_beyond_any(rig: Rig, after: int) -> None:
    page = server_pb2.ListAuditRequest(limit=1, after=after)
    assert send_signed(rig, "auditor", "Server/ListAudit", page).code == "invalid"
    watch = runs_pb2.WatchRunRequest(run_id=submitted(rig), after=after)
    assert send_signed(rig, "auditor", "Runs/WatchRun", watch).code == "invalid"
