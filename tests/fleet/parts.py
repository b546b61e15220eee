"""A fleet with real certificates, and nodes with real keys."""

import base64
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import httpx
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.app import Message
from google.protobuf.message import Message as Protobuf

from fedpeft.identity.authority import CERTIFICATE, Authority
from fedpeft.identity.keys import new_key, write_request
from fedpeft.identity.roles import Role
from fedpeft_client.fleet_node import FleetNode
from fedpeft_client.flower_app import Handler
from fedpeft_server.fleet import Fleet, FleetConfig, FleetGrid

LONG_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Place:
    """What a server needs to speak TLS, and what nodes need to trust it."""

    authority: bytes
    certificate: Path
    key: Path

    def config(self, **settings: Any) -> FleetConfig:
        return FleetConfig(certificate=self.certificate, key=self.key, **settings)


def make_place(folder: Path) -> Place:
    authority = Authority.create(folder / "ca", "authority of a test")
    write_request(new_key(folder / "key.pem"), "server", folder / "request.pem")
    authority.issue(
        folder / "request.pem",
        [Role.SERVER],
        folder / "certificate.pem",
        days=2,
        hosts=["127.0.0.1"],
    )
    return Place(
        authority=(folder / "ca" / CERTIFICATE).read_bytes(),
        certificate=folder / "certificate.pem",
        key=folder / "key.pem",
    )


class Member:
    """A node's key, and its id at the fleet where it was enrolled last."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.node_id = 0

    @property
    def public_key(self) -> bytes:
        return self.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def enrol(self, fleet: Fleet) -> "Member":
        self.node_id = fleet.register(self.public_key)
        return self

    def node(self, fleet: Fleet, port: int = 0, **settings: Any) -> FleetNode:
        address = f"127.0.0.1:{port or fleet.port}"
        return FleetNode(address, authority=self.place.authority, key=self.key, **settings)


class Served:
    """A node that serves in a thread; `error` is what ended it, if anything did."""

    def __init__(self, node: FleetNode, handler: Handler) -> None:
        self.node = node
        self.error: Exception | None = None
        node.connect()
        self._handler = handler
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        try:
            self.node.serve(self._handler)
        except Exception as error:
            self.error = error

    def ended(self, within_s: float = LONG_S) -> Exception | None:
        """Waits until it ended by itself."""
        self._thread.join(within_s)
        assert not self._thread.is_alive()
        return self.error

    def close(self) -> None:
        self.node.close()
        self.ended()


@contextmanager
def serving(handler: Handler, *nodes: FleetNode) -> Iterator[list[Served]]:
    served = [Served(node, handler) for node in nodes]
    try:
        yield served
    finally:
        for each in served:
            each.close()


def collect(grid: FleetGrid, message_ids: list[str]) -> dict[str, Message]:
    """All replies, by the message that they answer."""
    replies: dict[str, Message] = {}
    while len(replies) < len(message_ids):
        open_ids = [each for each in message_ids if each not in replies]
        assert grid.wait(open_ids, LONG_S), f"no reply to {len(open_ids)} messages"
        replies |= {
            each.metadata.reply_to_message_id: each for each in grid.pull_messages(open_ids)
        }
    return replies


class Peer:
    """Somebody who speaks to the public port with requests of their own making."""

    opened: ClassVar[list[httpx.Client]] = []

    def __init__(self, fleet: Fleet, place: Place) -> None:
        context = ssl.create_default_context(cadata=place.authority.decode())
        self.http = httpx.Client(
            base_url=f"https://127.0.0.1:{fleet.port}", verify=context, timeout=LONG_S
        )
        self.opened.append(self.http)

    def post(
        self,
        path: str,
        request: Protobuf | bytes = b"",
        headers: dict[str, str] | None = None,
    ) -> httpx.Response:
        content = request if isinstance(request, bytes) else request.SerializeToString()
        return self.http.post(
            path,
            content=content,
            headers={"content-type": "application/protobuf", **(headers or {})},
        )


def signed(
    key: ec.EllipticCurvePrivateKey,
    *,
    timestamp: str | None = None,
    session: str = "",
    claim: bytes | None = None,
) -> dict[str, str]:
    """The headers of a node; `claim` is another key than the one that signs."""
    stamp = timestamp or datetime.now(UTC).isoformat()
    public = claim or key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signature = key.sign(stamp.encode(), ec.ECDSA(hashes.SHA256()))
    return {
        "flwr-public-key": base64.b64encode(public).decode(),
        "flwr-signature": base64.b64encode(signature).decode(),
        "flwr-timestamp": stamp,
        "fedpeft-session": session,
    }
