"""How clients come in and go: invited by an operator, enrolled by their owner, revoked."""

import hashlib
import secrets
import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from fedpeft.errors import IdentityError
from fedpeft.identity.certificates import Identity
from fedpeft.identity.roles import Role
from fedpeft.wire.catalogue import Refused
from fedpeft.wire.serde import OLDEST_PROTOCOL, PROTOCOL
from fedpeft_server.ports import ClientNodes
from fedpeft_server.records import Client
from fedpeft_server.state import (
    BadTokenError,
    ClientRevokedError,
    KeyInUseError,
    NotFoundError,
    State,
)

LONGEST_HOURS = 24 * 90
"""Validity of an invitation."""

_TOKEN_BYTES = 32
_USED_UP = "this node key was taken out of the fleet before; make a new one"


@dataclass(frozen=True, kw_only=True)
class Invitation:
    """A token, which is shown once and stored nowhere, and when it runs out."""

    token: str
    expires_at: datetime


class Enrolment:
    """Keeps the database and the fleet in step. Safe to use from any thread."""

    def __init__(self, state: State, nodes: ClientNodes, *, max_clients: int) -> None:
        """Takes where clients are recorded, their nodes, and how many may be enrolled."""
        self._state, self._nodes = state, nodes
        self._max_clients = max_clients
        # Of an enrolment and a revocation at the same time, the fleet must see the later one last.
        self._lock = threading.Lock()

    def invite(self, client_id: str, valid_hours: int, inviter: str) -> Invitation:
        """Makes a token that the named client can enrol with once.

        Raises:
            RemoteError: `busy`, if there are as many clients as may be.
        """
        self._check_room(client_id)
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        expires_at = datetime.now(UTC) + timedelta(hours=valid_hours)
        self._state.add_invitation(client_id, _digest(token), expires_at, inviter)
        return Invitation(token=token, expires_at=expires_at)

    def enrol(
        self, caller: Identity, *, token: str, node_public_key: bytes, protocol: int, version: str
    ) -> Client:
        """Makes the caller a client under the name in its certificate.

        Args:
            caller: Who.
            token: Of its invitation; empty where this node key is enrolled already.
            node_public_key: PEM.
            protocol: That it speaks.
            version: Of its fedpeft.

        Raises:
            RemoteError: `old-protocol`, `bad-token`, `revoked`, `already-exists` where the node key
                is another client's, or `invalid` where it is none.
        """
        if not OLDEST_PROTOCOL <= protocol <= PROTOCOL:
            raise Refused.OLD_PROTOCOL.error(
                f"the client speaks protocol {protocol}, the server {OLDEST_PROTOCOL} to {PROTOCOL}"
            )
        _check_key(node_public_key)
        now = datetime.now(UTC)
        client = Client(
            client_id=caller.name,
            certificate_serial=caller.serial,
            node_public_key=node_public_key,
            protocol=protocol,
            version=version,
            enrolled_at=now,
            last_seen=now,
        )
        with self._lock:
            self._check_room(caller.name)
            self._check_key_is_new(client)
            try:
                kept = self._state.enrol(
                    caller.name, _digest(token) if token else None, client, now
                )
            except BadTokenError as error:
                raise Refused.BAD_TOKEN.error() from error
            except ClientRevokedError as error:
                raise Refused.REVOKED.error(repr(caller.name)) from error
            except KeyInUseError as error:
                raise Refused.ALREADY_EXISTS.error("the node key is another client's") from error
            try:
                self._nodes.register(kept.client_id, kept.node_public_key)
            except IdentityError as error:
                raise Refused.INVALID.error(_USED_UP) from error
            return kept

    def revoke(self, client_id: str, reason: str) -> Client:
        """Takes a client out, also where it is connected now; again it changes nothing.

        Raises:
            RemoteError: `no-such-client`.
        """
        with self._lock:
            try:
                client = self._state.revoke_client(client_id, reason, datetime.now(UTC))
            except NotFoundError as error:
                raise Refused.NO_SUCH_CLIENT.error(repr(client_id)) from error
            self._nodes.unregister(client_id)
            return client

    def is_revoked(self, caller: Identity) -> bool:
        """Returns whether the caller's very certificate was taken out with a client."""
        # Nobody else enrols, and others are answered while the database is down, as health is.
        return Role.DATA_OWNER in caller.roles and self._state.certificate_revoked(
            caller.name, caller.serial
        )

    def _check_room(self, client_id: str) -> None:
        others = [c for c in self._state.clients() if c.revoked_at is None]
        if sum(other.client_id != client_id for other in others) >= self._max_clients:
            raise Refused.BUSY.error(f"{self._max_clients} clients are enrolled, which is the most")

    def _check_key_is_new(self, client: Client) -> None:
        """A fleet takes no key twice: better refuse it before it uses up a token."""
        try:
            before = self._state.client(client.client_id)
        except NotFoundError:
            return
        if before.revoked_at is not None and before.node_public_key == client.node_public_key:
            raise Refused.INVALID.error(_USED_UP)


def _check_key(pem: bytes) -> None:
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise Refused.INVALID.error("node_public_key is no public key in PEM") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise Refused.INVALID.error("node_public_key must be an elliptic-curve key")


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
