"""What a stranger can do on the public port: nothing."""

import base64
import http.client
import socket
import ssl
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fastapi.routing import APIRoute, iter_route_contexts
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest

from fedpeft_server.fleet import Fleet
from fedpeft_server.fleet.gate import REQUESTS
from tests.fleet.parts import Member, Peer, Place, signed
from tests.fleet.superlink import superlink

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "TRACE")


def routes() -> list[str]:
    """Every path of Flower's app, also those that a later version adds."""
    app = superlink()
    found = {getattr(route, "path", "") for route in app.routes}
    found |= {
        context.path
        for context in iter_route_contexts(app.routes)
        if isinstance(context.route, APIRoute)
    }
    return sorted(found - {""})


ROUTES = routes()


def body_of(path: str, member: Member) -> bytes:
    """A request that Flower would answer, were it this node's."""
    node = Node(node_id=member.node_id)
    requests = {
        "activate-node": ActivateNodeRequest(public_key=member.public_key, heartbeat_interval=30),
        "deactivate-node": DeactivateNodeRequest(node_id=member.node_id),
        "send-node-heartbeat": SendNodeHeartbeatRequest(node=node, heartbeat_interval=30),
        "pull-messages": PullMessagesRequest(node=node),
        "push-messages": PushMessagesRequest(
            node=node, messages_list=[{}], message_object_trees=[ObjectTree()]
        ),
        "get-run": GetRunRequest(node=node, run_id=1),
    }
    return requests[path.rsplit("/", 1)[-1]].SerializeToString()


def test_flowers_app_has_what_must_not_be_reached() -> None:
    for path in ("/v1/control/start-run", "/v1/fleet/register-node", "/docs", "/openapi.json"):
        assert path in ROUTES
    assert any(path.startswith("/v1/runtime/") for path in ROUTES)
    assert set(REQUESTS) < set(ROUTES)


@pytest.mark.parametrize("as_node", [False, True], ids=["stranger", "node"])
def test_no_other_path_exists(fleet: Fleet, place: Place, as_node: bool) -> None:
    member = Member(place).enrol(fleet)
    peer = Peer(fleet, place)
    odd = [
        "/",
        "//v1/fleet/pull-messages",
        "/v1/fleet/pull-messages/",
        "/v1/fleet",
        "/v1/FLEET/get-run",
    ]
    odd += ["/v1/fleet/../control/start-run", "/v1/fleet/%2e%2e/control/start-run", "/metrics"]
    for path in [*ROUTES, *odd]:
        if path in REQUESTS:
            continue
        headers = signed(member.key) if as_node else {}
        concrete = path.replace("{", "").replace("}", "")
        for method in METHODS:
            answer = peer.http.request(
                method, concrete, headers={"content-type": "application/protobuf", **headers}
            )
            assert answer.status_code == 404, (method, path, answer.text)
            assert answer.text in ("not-found", "")


def test_an_upgrade_to_websockets_is_ignored(fleet: Fleet, place: Place) -> None:
    peer = Peer(fleet, place)
    for path in ("/v1/fleet/pull-messages", "/v1/runtime/responses"):
        answer = peer.http.get(
            path,
            headers={
                "connection": "upgrade",
                "upgrade": "websocket",
                "sec-websocket-key": base64.b64encode(bytes(16)).decode(),
                "sec-websocket-version": "13",
            },
        )
        assert answer.status_code in (404, 405)


@pytest.mark.parametrize("path", list(REQUESTS))
def test_only_post_and_only_protobuf(fleet: Fleet, place: Place, path: str) -> None:
    peer = Peer(fleet, place)
    for method in METHODS:
        if method != "POST":
            headers = {"content-type": "application/protobuf"}
            assert peer.http.request(method, path, headers=headers).status_code == 405
    assert peer.post(path, headers={"content-type": "application/json"}).status_code == 415
    assert peer.post(path, headers={"content-encoding": "gzip"}).status_code == 415


@pytest.mark.parametrize("path", list(REQUESTS))
def test_nobody_gets_in_without_a_nodes_signature(fleet: Fleet, place: Place, path: str) -> None:
    member, other = Member(place).enrol(fleet), Member(place).enrol(fleet)
    stranger = Member(place)
    peer = Peer(fleet, place)
    body = body_of(path, member)
    good = signed(member.key)
    now = datetime.now(UTC)

    def stamped(stamp: str) -> dict[str, str]:
        return signed(member.key, timestamp=stamp)

    attempts: dict[str, tuple[dict[str, str], int]] = {
        "nothing": ({}, 401),
        "no key": ({**good, "flwr-public-key": ""}, 401),
        "no signature": ({**good, "flwr-signature": ""}, 401),
        "no time": ({**good, "flwr-timestamp": ""}, 401),
        "key in other letters": ({**good, "flwr-public-key": "%%%"}, 401),
        "another's signature": (signed(stranger.key, claim=member.public_key), 401),
        "signature of another time": (
            {**good, "flwr-timestamp": (now + timedelta(seconds=1)).isoformat()},
            401,
        ),
        "two minutes old": (stamped((now - timedelta(minutes=2)).isoformat()), 401),
        "from the future": (stamped((now + timedelta(minutes=1)).isoformat()), 401),
        "no time zone": (stamped(now.replace(tzinfo=None).isoformat()), 401),
        "no time at all": (stamped("yesterday"), 401),
        "a key that nobody enrolled": (signed(stranger.key), 403),
        "an RSA key": ({**good, "flwr-public-key": encoded(rsa_key())}, 401),
        "an Ed25519 key": ({**good, "flwr-public-key": encoded(ed25519_key())}, 401),
    }
    for name, (headers, status) in attempts.items():
        headers = {key: value for key, value in headers.items() if value}
        answer = peer.post(path, body, headers)
        assert answer.status_code == status, (name, answer.text)
        assert len(answer.text) < 20
    # Another node, that is enrolled, in this one's name.
    peer.post("/v1/fleet/activate-node", body_of("activate-node", other), signed(other.key))
    assert peer.post(path, body, signed(other.key)).status_code in (403, 410)
    assert set(fleet.online()) == {other.node_id}


@pytest.mark.parametrize("path", list(REQUESTS))
def test_what_was_heard_once_is_not_taken_again(fleet: Fleet, place: Place, path: str) -> None:
    member = Member(place).enrol(fleet)
    peer = Peer(fleet, place)
    peer.post("/v1/fleet/activate-node", body_of("activate-node", member), signed(member.key))
    headers = signed(member.key)
    assert peer.post(path, body_of(path, member), headers).status_code in (200, 410)
    again = peer.post(path, body_of(path, member), headers)
    assert (again.status_code, again.text) == (401, "replayed")
    moved = peer.post("/v1/fleet/deactivate-node", body_of("deactivate-node", member), headers)
    assert (moved.status_code, moved.text) == (401, "replayed")


def test_a_header_that_comes_twice_is_refused(fleet: Fleet, place: Place) -> None:
    member, other = Member(place).enrol(fleet), Member(place).enrol(fleet)
    peer = Peer(fleet, place)
    headers = [("content-type", "application/protobuf"), *signed(member.key).items()]
    headers += [("flwr-public-key", signed(other.key)["flwr-public-key"])]
    answer = peer.http.post("/v1/fleet/pull-messages", headers=headers)
    assert (answer.status_code, answer.text) == (400, "malformed")


def test_plain_http_and_old_tls_are_not_spoken(fleet: Fleet, place: Place) -> None:
    plain = http.client.HTTPConnection("127.0.0.1", fleet.port, timeout=30)
    plain.request("POST", "/v1/fleet/pull-messages")
    with pytest.raises((http.client.HTTPException, OSError)):
        plain.getresponse()
    plain.close()
    context = ssl.create_default_context(cadata=place.authority.decode())
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection(("127.0.0.1", fleet.port)) as raw,
        pytest.raises(ssl.SSLError),
    ):
        context.wrap_socket(raw, server_hostname="127.0.0.1")


def encoded(key: rsa.RSAPublicKey | ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey) -> str:
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(pem).decode()


def rsa_key() -> rsa.RSAPublicKey:
    return rsa.generate_private_key(65537, 2048).public_key()


def ed25519_key() -> ed25519.Ed25519PublicKey:
    return ed25519.Ed25519PrivateKey.generate().public_key()
