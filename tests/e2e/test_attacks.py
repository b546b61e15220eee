"""Attacks on a federation of real processes, end to end; docs/threats.md lists all of them."""

import importlib
import pkgutil
import re
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf import descriptor_pool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

import fedpeft.wire.v1
from fedpeft.errors import EnrolmentError
from fedpeft.identity.roles import Role
from fedpeft.wire.v1 import clients_pb2
from fedpeft_client.fleet_node import FleetNode
from fedpeft_client.state_folder import StateFolder
from fedpeft_server import events
from fedpeft_server.fleet.gate import PUSH
from tests import postgres
from tests.e2e.checks import check_charges, num_charges
from tests.e2e.crashes import LONG_ROUND
from tests.e2e.federation import NAMES, OPERATOR, Federation, federation
from tests.e2e.planted import Mistake
from tests.fleet.parts import signed
from tests.fleet.superlink import superlink
from tests.server.holders import Holders
from tests.server.raw_calls import WIRE, channel, send, signature

pytestmark = pytest.mark.e2e

INVITE = f"{WIRE}Clients/InviteClient"
TEN_GB = 10 * 2**30
MIB = 2**20
OLDER = Mistake(file="fedpeft/wire/serde.py", right="\nPROTOCOL = 1\n", wrong="\nPROTOCOL = 0\n")
_LEAK = re.compile(r"Traceback|File \"|site-packages|\.py\b|/tmp/|/home/|/root/|sqlite|psycopg")


def check_no_leak(text: str, opened: Federation) -> None:
    """Nothing of what goes on inside: no stack, no path, no database."""
    assert _LEAK.search(text) is None, text
    assert str(opened.folder) not in text


def methods(opened: Federation) -> list[str]:
    """Every method of every service that the running server says it has."""
    for module in pkgutil.iter_modules(fedpeft.wire.v1.__path__):
        importlib.import_module(f"fedpeft.wire.v1.{module.name}")
    with channel(opened, OPERATOR) as known:
        services = set(ProtoReflectionDescriptorDatabase(known).get_services())
    assert {"fedpeft.wire.v1.Runs", "grpc.health.v1.Health"} <= services
    pool = descriptor_pool.Default()
    found = [m for name in services for m in pool.FindServiceByName(name).methods]
    return [f"/{m.containing_service.full_name}/{m.name}" for m in found]


def test_a_stranger_calls_every_method(standing: Federation, tmp_path: Path) -> None:
    """In plain text, in TLS without a certificate, and as an operator of another authority."""
    others = Holders(tmp_path)
    others.issue(OPERATOR, Role.OPERATOR)
    ours, theirs = standing.holders.of(OPERATOR).authority_pem, others.of(OPERATOR)
    known_by = grpc.ssl_channel_credentials(ours, theirs.key_pem, theirs.certificate_pem)
    with (
        grpc.insecure_channel(standing.address) as plain,
        grpc.secure_channel(standing.address, grpc.ssl_channel_credentials(ours)) as nameless,
        grpc.secure_channel(standing.address, known_by) as other,
    ):
        for path in methods(standing):
            for opened in (plain, nameless, other):
                with pytest.raises(grpc.RpcError) as refused:
                    list(opened.unary_stream(path)(b"", timeout=60))
                assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
                check_no_leak(refused.value.details() or "", standing)
    assert standing.operator.get_server().caller == OPERATOR


def test_a_stranger_asks_for_every_endpoint_of_flower(standing: Federation) -> None:
    """On the public port, all that Flower's own app answers to; and with the key of no node."""
    context = ssl.create_default_context(
        cadata=standing.holders.of(OPERATOR).authority_pem.decode()
    )
    stranger = ec.generate_private_key(ec.SECP256R1())
    base = f"https://{standing.fleet_address}"
    paths = superlink().openapi()["paths"]
    assert {"/v1/control/start-run", "/v1/fleet/push-messages"} < set(paths)
    with httpx.Client(base_url=base, verify=context, timeout=60) as http:
        for path, operations in paths.items():
            for method in operations:
                for headers in ({}, signed(stranger)):
                    headers |= {"content-type": "application/protobuf"}
                    answer = http.request(method, path, content=b"\x08\x01", headers=headers)
                    assert answer.status_code in (401, 403, 404), (method, path, answer.text)
                    assert len(answer.content) < 32
                    check_no_leak(answer.text + str(answer.headers), standing)
    authority = standing.holders.of(OPERATOR).authority_pem
    with (
        FleetNode(standing.fleet_address, authority=authority, key=stranger) as node,
        pytest.raises(EnrolmentError, match="does not know this node's key"),
    ):
        node.connect()


def test_a_captured_request_is_not_taken_by_the_next_process(standing: Federation) -> None:
    """What was accepted once is remembered over a kill."""
    request = clients_pb2.InviteClientRequest(client_id="captured", valid_hours=1)
    body = request.SerializeToString()
    host = standing.server_host.address
    beside = signature(standing.holders.of(OPERATOR), INVITE, body, audience=host)
    with channel(standing, OPERATOR) as opened:
        assert send(opened, INVITE, body, beside).code == "ok"
        assert send(opened, INVITE, body, beside).code == "replayed"
    standing.restart_server()
    standing.operator.get_server()  # it is patient
    with channel(standing, OPERATOR) as opened:
        refused = send(opened, INVITE, body, beside)
    assert refused.code == "replayed"
    check_no_leak(refused.message, standing)
    audited = [e.outcome for e in standing.operator.audit() if e.subject == "captured"]
    assert audited.count("ok") == 1
    assert "replayed" in {e.outcome for e in standing.operator.audit()}


def test_a_payload_that_is_too_large_is_not_read(standing: Federation) -> None:
    """Ten gigabytes are claimed by an enrolled node and by a stranger; 65 MiB are sent to gRPC."""
    before = standing.server.rss_bytes()
    node = StateFolder(standing.clients["shop"].folder / "state").node_key()
    for key, status in ((node, b"413"), (ec.generate_private_key(ec.SECP256R1()), b"413")):
        answer = claim(standing, signed(key), TEN_GB)
        assert answer.startswith(b"HTTP/1.1 " + status), answer
        check_no_leak(answer.decode("latin-1"), standing)
    with channel(standing, OPERATOR) as opened, pytest.raises(grpc.RpcError) as refused:
        opened.unary_unary(INVITE)(bytes(65 * MIB), timeout=60)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    check_no_leak(refused.value.details() or "", standing)
    assert standing.server.rss_bytes() - before < 32 * MIB


def claim(opened: Federation, headers: dict[str, str], size: int) -> bytes:
    """What the public port answers to the head of a reply of that size."""
    context = ssl.create_default_context(cadata=opened.holders.of(OPERATOR).authority_pem.decode())
    host = opened.server_host.address
    head = {"host": host, "content-type": "application/protobuf", "content-length": str(size)}
    lines = [f"POST {PUSH} HTTP/1.1", *(f"{k}: {v}" for k, v in (head | headers).items())]
    with (
        socket.create_connection((host, opened.fleet_port), timeout=60) as raw,
        context.wrap_socket(raw, server_hostname=host) as connected,
    ):
        connected.sendall("\r\n".join([*lines, "", ""]).encode())
        return connected.recv(65536)


def test_a_client_of_an_older_protocol_is_told_so(standing: Federation, tmp_path: Path) -> None:
    old = standing.add_client("museum", source=OLDER.planted(tmp_path))
    old.process.start()
    old.process.line("upgrade the older side")
    assert old.process.ended() != 0
    assert "museum" not in {c.client_id for c in standing.operator.list_clients()}


def test_a_client_that_is_revoked_in_the_middle_of_a_run(tmp_path: Path, tiny_bert: Path) -> None:
    """Its process ends and says why, the others go on, and what it released stays charged."""
    with federation(tmp_path, tiny_bert) as opened:
        opened.join(*NAMES)
        watched = opened.submit(
            opened.config(quorum=2, num_rounds=4, local_steps=LONG_ROUND, round_deadline_s=3600)
        )
        watched.event(events.ROUND_FINISHED, round=1)
        opened.operator.revoke_client("bank", "left the federation")
        run = watched.finished()
        bank = opened.clients["bank"].process
        bank.line("client 'bank' was revoked")
        assert bank.ended() != 0
        last = run.rounds[-1]
        assert (set(last.cohort), last.missing) == ({"clinic", "shop"}, {"bank": "revoked"})
        check_charges(opened, watched, run)
        bank.start()
        assert bank.ended() != 0, "it came back"


@pytest.fixture
def database() -> Iterator[postgres.Server]:
    with postgres.server() as server:
        yield server


def test_a_run_outlives_its_database(
    tmp_path: Path, tiny_bert: Path, database: postgres.Server
) -> None:
    """PostgreSQL stops in the middle of a run and comes back; nobody pays twice for it."""
    with federation(tmp_path, tiny_bert, database=database.url) as opened:
        opened.join(*NAMES)
        watched = opened.submit(opened.config())
        watched.event(events.ROUND_STARTED, round=2)
        database.stop()
        opened.server.line("unavailable")
        with channel(opened, OPERATOR) as raw:
            refused = send(raw, f"{WIRE}Runs/ListRuns", b"")
        assert refused.code == "database-down"
        check_no_leak(refused.message, opened)
        database.start()
        run = watched.finished()
        assert [set(r.cohort) for r in run.rounds] == [set(NAMES)] * 3
        check_charges(opened, watched, run)
        for name in NAMES:
            assert num_charges(opened.clients[name], run.run.run_id) == 3
