"""What a call must have to be let in; see `guard` for the order."""

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import grpc
from cryptography import x509
from google.protobuf.message import DecodeError, Message

from fedpeft.errors import IdentityError, RemoteError, UnavailableError, VerificationError
from fedpeft.identity.certificates import Identity
from fedpeft.wire.catalogue import BY_CODE, Refused
from fedpeft_server.access.limits import Rate
from fedpeft_server.access.rules import RULES, Rule
from fedpeft_server.access.signatures import SignatureCheck
from fedpeft_server.access.trust import Trust

_LONGEST_SUBJECT = 100


@dataclass(frozen=True, kw_only=True)
class Visitor:
    """Somebody who may call a method.

    Attributes:
        identity: Who.
        certificate: That TLS and the door have checked.
        rule: Of the method.
    """

    identity: Identity
    certificate: x509.Certificate
    rule: Rule


class Door:
    """Lets callers in."""

    def __init__(
        self,
        *,
        trust: Trust,
        is_revoked: Callable[[Identity], bool],
        signatures: SignatureCheck,
        changes: Rate,
    ) -> None:
        """Takes what is asked about a caller.

        Args:
            trust: Whose certificate holds.
            is_revoked: Whether a holder was revoked as a client.
            signatures: Of requests that change something.
            changes: How many of those a caller may make.
        """
        self._trust, self._is_revoked = trust, is_revoked
        self._signatures, self._changes = signatures, changes
        self._closing = threading.Event()

    def close(self) -> None:
        """Lets nobody in any more, and ends streams."""
        self._closing.set()

    def identify(self, context: grpc.ServicerContext) -> tuple[x509.Certificate, Identity]:
        """Returns whose certificate the connection was made with.

        Raises:
            RemoteError: `not-trusted` or `revoked`.
        """
        certificate = _peer_certificate(context)
        return certificate, self._trusted(certificate)

    def allow(self, method: str, certificate: x509.Certificate, identity: Identity) -> Visitor:
        """Returns the visitor, if it may call the method.

        Raises:
            RemoteError: `unknown-method` or `not-allowed`.
        """
        rule = RULES.get(method)
        if rule is None:
            raise Refused.UNKNOWN_METHOD.error("this method")
        if not identity.roles & rule.roles:
            raise Refused.NOT_ALLOWED.error(", ".join(sorted(rule.roles)))
        return Visitor(identity=identity, certificate=certificate, rule=rule)

    def recheck(self, visitor: Visitor) -> None:
        """Refuses a visitor that would not be let in now; for calls that last.

        Raises:
            RemoteError: `not-trusted`, `revoked` or `shutting-down`.
        """
        if self._closing.is_set():
            raise Refused.SHUTTING_DOWN.error()
        self._trusted(visitor.certificate)

    def receive(self, requests: Iterator[bytes]) -> bytes | None:
        """Returns the one message of a call.

        Returns:
            None where no message came: gRPC refused it, as too large or as compressed, or the
            caller sent none, or went away. It does not say which.
        """
        try:
            return next(requests)
        except (StopIteration, grpc.RpcError):
            return None

    def check_change(
        self,
        visitor: Visitor,
        method: str,
        metadata: Mapping[str, str | bytes],
        request: bytes,
    ) -> None:
        """Accepts a request that changes something, once.

        Raises:
            RemoteError: `not-signed`, `replayed` or `busy`.
            UnavailableError: If the memory of nonces cannot be reached.
        """
        self._signatures.check(
            metadata,
            method=method,
            request=request,
            certificate=visitor.certificate,
            now=datetime.now(UTC),
        )
        if not self._changes.take(visitor.identity.name):
            raise Refused.BUSY.error("you have made too many changes in a short time")

    def _trusted(self, certificate: x509.Certificate) -> Identity:
        try:
            identity = self._trust.identify(certificate, datetime.now(UTC))
        except IdentityError as error:
            raise Refused.NOT_TRUSTED.error(str(error)) from error
        if self._is_revoked(identity):
            raise Refused.REVOKED.error(repr(identity.name))
        return identity


def parse(deserialize: Callable[[bytes], Any], raw: bytes) -> Any:
    """Returns a message of its bytes.

    Raises:
        RemoteError: `invalid`.
    """
    try:
        return deserialize(raw)
    except DecodeError as error:
        raise Refused.INVALID.error("the request is not a message of this method") from error


def subject_of(rule: Rule, request: Message) -> str:
    """Returns what a request says that it is about, fit for a log."""
    text = str(getattr(request, rule.subject)) if rule.subject else ""
    return "".join(c if c.isprintable() else "?" for c in text[:_LONGEST_SUBJECT])


def refusal_for(error: Exception) -> RemoteError | None:
    """Returns the refusal that an error means; None for one that nobody has thought of."""
    if isinstance(error, RemoteError) and error.code in BY_CODE:
        return error
    if isinstance(error, UnavailableError):
        return Refused.DATABASE_DOWN.error()
    if isinstance(error, VerificationError):
        return Refused.DAMAGED.error()
    return None


def _peer_certificate(context: grpc.ServicerContext) -> x509.Certificate:
    found: Any = context.auth_context().get("x509_pem_cert") or [b""]
    try:
        return x509.load_pem_x509_certificate(found[0])
    except ValueError as error:
        raise Refused.NOT_TRUSTED.error("there is none") from error
