"""Requests that are signed over their bytes: what the caller sends beside one, and its check.

TLS protects a connection. A signature binds one request to its caller, its method, its server and
its moment, so that whoever captures it (a proxy, a log, a memory dump) can neither change it nor
send it again. It is ECDSA P-256 with SHA-256 by the key of the caller's certificate over

    "fedpeft.wire.v1.request" 0x00
    then, each with its length before it (4 bytes, big-endian):
    method path, audience, nonce, time, sha256 of the request's bytes

The audience is the host that the caller checked the server's certificate for: a server that is sent
a request cannot send it on to another one. A nonce is used once; a server that keeps those of the
last few minutes and refuses older times therefore accepts a request once.
"""

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from fedpeft.errors import ProtocolError

NONCE, TIME = "fedpeft-nonce-bin", "fedpeft-time"
AUDIENCE, SIGNATURE = "fedpeft-audience", "fedpeft-signature-bin"
"""Keys of the call's metadata; gRPC takes bytes under those that end in -bin."""

WINDOW = timedelta(minutes=5)
"""How far the clocks of caller and server may differ."""

_NONCE_BYTES = 16
_LONGEST_AUDIENCE = 253  # of a host name, by RFC 1035
_DOMAIN = b"fedpeft.wire.v1.request\0"


@dataclass(frozen=True, kw_only=True)
class RequestSignature:
    """What stands beside a signed request.

    Attributes:
        nonce: 16 random bytes, used once.
        time_ms: When it was signed, milliseconds since 1970 in UTC.
        audience: Host of the server that it is for, lower case.
        signature: In DER.
    """

    nonce: bytes
    time_ms: int
    audience: str
    signature: bytes

    @classmethod
    def make(
        cls,
        key: ec.EllipticCurvePrivateKey,
        *,
        method: str,
        audience: str,
        request: bytes,
        now: datetime,
    ) -> "RequestSignature":
        """Signs a request, with a nonce of its own."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        time_ms = int(now.timestamp() * 1000)
        audience = audience.lower()
        signed = _signed_bytes(method, audience, nonce, time_ms, request)
        return cls(
            nonce=nonce,
            time_ms=time_ms,
            audience=audience,
            signature=key.sign(signed, ec.ECDSA(hashes.SHA256())),
        )

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str | bytes]) -> "RequestSignature":
        """Reads what came with a call.

        Raises:
            ProtocolError: If a part is missing or malformed.
        """
        nonce, signature = metadata.get(NONCE), metadata.get(SIGNATURE)
        time, audience = metadata.get(TIME), metadata.get(AUDIENCE)
        if not isinstance(nonce, bytes) or not isinstance(signature, bytes):
            raise ProtocolError("it is not signed")
        if not isinstance(time, str) or not isinstance(audience, str):
            raise ProtocolError("its time or audience is missing")
        if len(nonce) != _NONCE_BYTES:
            raise ProtocolError(f"its nonce must have {_NONCE_BYTES} bytes, got {len(nonce)}")
        # No more digits than any time has: `int` takes quadratic time, and takes "1_0" too.
        if not (time.isascii() and time.isdigit() and len(time) <= 15):
            raise ProtocolError("its time must be milliseconds since 1970")
        if not 0 < len(audience) <= _LONGEST_AUDIENCE:
            raise ProtocolError("its audience is no host")
        return cls(nonce=nonce, time_ms=int(time), audience=audience, signature=signature)

    def to_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """Writes what goes with the call."""
        return (
            (NONCE, self.nonce),
            (TIME, str(self.time_ms)),
            (AUDIENCE, self.audience),
            (SIGNATURE, self.signature),
        )

    def is_by(self, key: ec.EllipticCurvePublicKey, *, method: str, request: bytes) -> bool:
        """Returns whether that key signed exactly this request."""
        signed = _signed_bytes(method, self.audience, self.nonce, self.time_ms, request)
        try:
            key.verify(self.signature, signed, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True

    def is_recent(self, now: datetime) -> bool:
        """Returns whether it was signed within `WINDOW` of now."""
        return abs(self.time_ms - int(now.timestamp() * 1000)) <= WINDOW.total_seconds() * 1000

    @property
    def forgettable_at(self) -> datetime:
        """From when on its time alone refuses it, so that the nonce need not be kept."""
        return datetime.fromtimestamp(self.time_ms / 1000, UTC) + 2 * WINDOW


def _signed_bytes(method: str, audience: str, nonce: bytes, time_ms: int, request: bytes) -> bytes:
    parts = (
        method.encode(),
        audience.encode(),
        nonce,
        str(time_ms).encode(),
        hashlib.sha256(request).digest(),
    )
    return _DOMAIN + b"".join(len(part).to_bytes(4, "big") + part for part in parts)
