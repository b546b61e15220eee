"""A body and who answers for it: signed with the key of a certificate that the authority issued.

TLS says who opened a connection. A signature says who made a message, also after it was stored, and
also where a transport takes the sender's word for it, as Flower does for the source of a reply.
"""

from collections.abc import Callable
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.message import DecodeError

from fedpeft.errors import IdentityError, ProtocolError
from fedpeft.identity.certificates import Identity
from fedpeft.wire.v1 import rounds_pb2 as pb

Identify = Callable[[x509.Certificate, datetime], Identity]
"""Checks a certificate as `identity.certificates.identify` does, with authority and revocations."""


def seal(
    kind: str, body: bytes, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate
) -> bytes:
    """Returns the signed envelope.

    Args:
        kind: Name of the body's message, so that one cannot be taken for another.
        body: What `serde` wrote.
        key: The signer's.
        certificate: Of that key.
    """
    return pb.Signed(
        body=body,
        signature=key.sign(_signed_bytes(kind, body), ec.ECDSA(hashes.SHA256())),
        certificate=certificate.public_bytes(Encoding.DER),
    ).SerializeToString()


def unseal(kind: str, envelope: bytes, identify: Identify) -> tuple[bytes, Identity]:
    """Returns the body and who signed it.

    Raises:
        ProtocolError: If it is no envelope.
        IdentityError: If the certificate does not hold now, or the signature is not its key's.
    """
    try:
        signed = pb.Signed.FromString(envelope)
        certificate = x509.load_der_x509_certificate(signed.certificate)
    except (DecodeError, ValueError, x509.InvalidVersion) as error:
        raise ProtocolError("expected a signed message, got bytes that are none") from error
    identity = identify(certificate, datetime.now(UTC))
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise IdentityError("expected a certificate of an ECDSA key")
    try:
        key.verify(signed.signature, _signed_bytes(kind, signed.body), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise IdentityError(
            f"the message was not signed by {identity.name}, or was altered"
        ) from error
    return signed.body, identity


def _signed_bytes(kind: str, body: bytes) -> bytes:
    return f"fedpeft.wire.v1.{kind}".encode("ascii") + b"\0" + body
