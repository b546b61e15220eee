"""Checking what a registry signed, offline."""

import base64
import binascii
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)

from fedpeft.canonical import canonical
from fedpeft.errors import IdentityError, VerificationError
from fedpeft.identity.certificates import holder_of
from fedpeft.identity.roles import Role
from fedpeft.registry.signing import ALGORITHM, endorsed, signed

_LARGEST_DOCUMENT = 2**24


class RegistryTrust:
    """Whose signatures are believed.

    A signature is believed for ever: that the server's certificate expired since, or was revoked,
    does not show. Whoever steals the registry's key can sign, also with an earlier date.
    """

    def __init__(
        self, *, authority: x509.Certificate | None = None, public_key: bytes | None = None
    ) -> None:
        """Use `of_authority` or `of_key`."""
        self._authority, self._public_key = authority, public_key

    @classmethod
    def of_authority(cls, certificate: x509.Certificate) -> Self:
        """Believes every registry whose server has a certificate of this authority."""
        return cls(authority=certificate)

    @classmethod
    def of_key(cls, pem: bytes) -> Self:
        """Believes one registry by its public key.

        Raises:
            IdentityError: If it is no Ed25519 public key in PEM.
        """
        try:
            key = load_pem_public_key(pem)
        except ValueError as error:
            raise IdentityError(f"expected a public key in PEM: {error}") from error
        if not isinstance(key, Ed25519PublicKey):
            raise IdentityError(f"expected a public key of {ALGORITHM}, got another kind")
        return cls(public_key=key.public_bytes(Encoding.Raw, PublicFormat.Raw))

    def verify(self, kind: str, document: str) -> Mapping[str, Any]:
        """Returns the body of a signed document.

        Args:
            kind: That it must be of.
            document: See `registry.signing`; white space around it does not matter.

        Raises:
            VerificationError: If it is no document, is of another kind, was altered, or nobody
                who is believed signed it.
        """
        body, found, signature = _parsed(document.strip())
        if found != kind:
            raise VerificationError(f"expected a signed {kind}, got a {str(found)[:40]!r}")
        public_key = _bytes(signature, "public_key")
        if self._public_key is not None and public_key != self._public_key:
            raise VerificationError("it was signed with another key than the one that is trusted")
        try:
            key = Ed25519PublicKey.from_public_bytes(public_key)
            key.verify(_bytes(signature, "value"), signed(kind, body))
        except (InvalidSignature, ValueError) as error:
            raise VerificationError(
                f"the {kind} was altered after it was signed, or its signature was"
            ) from error
        if self._authority is not None:
            self._check_endorsement(signature.get("endorsement"), public_key, _moment(body))
        return body

    def _check_endorsement(self, endorsement: object, public_key: bytes, at: datetime) -> None:
        assert self._authority is not None
        if not isinstance(endorsement, dict) or set(endorsement) != {"certificate", "value"}:
            raise VerificationError("no server answers for the key that signed it")
        try:
            certificate = x509.load_der_x509_certificate(_bytes(endorsement, "certificate"))
            holder = holder_of(certificate, self._authority, at)
        except (ValueError, x509.InvalidVersion) as error:
            raise VerificationError("the certificate beside the signature is none") from error
        except IdentityError as error:
            raise VerificationError(
                f"the server that answers for the signature is not believed: {error}"
            ) from error
        if Role.SERVER not in holder.roles:
            raise VerificationError(
                f"{holder.name} answers for the signature, and is no server of the federation"
            )
        key = certificate.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise VerificationError("expected a server's certificate of an ECDSA key")
        try:
            key.verify(
                _bytes(endorsement, "value"), endorsed(public_key), ec.ECDSA(hashes.SHA256())
            )
        except InvalidSignature as error:
            raise VerificationError(
                f"{holder.name} did not endorse the key that signed it"
            ) from error


def _parsed(document: str) -> tuple[Mapping[str, Any], object, Mapping[str, Any]]:
    if len(document) > _LARGEST_DOCUMENT:
        raise VerificationError(f"a signed document has at most {_LARGEST_DOCUMENT} characters")
    try:
        read = json.loads(document)
        is_canonical = canonical(read) == document
    except (ValueError, TypeError, RecursionError) as error:
        raise VerificationError(f"expected a signed document: {error}") from error
    if not isinstance(read, dict) or not is_canonical:
        raise VerificationError("expected a signed document in its canonical form")
    body, signature = read.get("body"), read.get("signature")
    if set(read) != {"kind", "body", "signature"} or not isinstance(body, dict):
        raise VerificationError("expected a signed document of kind, body and signature")
    expected = {"algorithm", "public_key", "value", "endorsement"}
    if not isinstance(signature, dict) or set(signature) != expected:
        raise VerificationError("it is not signed")
    if signature["algorithm"] != ALGORITHM:
        raise VerificationError(
            f"expected a signature of {ALGORITHM}, got {str(signature['algorithm'])[:40]!r}"
        )
    return body, read["kind"], signature


def _moment(body: Mapping[str, Any]) -> datetime:
    try:
        at = datetime.fromisoformat(body["created_at"])
    except (KeyError, TypeError, ValueError) as error:
        raise VerificationError("it does not say when it was signed") from error
    if at.tzinfo is None:
        raise VerificationError("the time that it was signed at has no zone")
    return at


def _bytes(fields: Mapping[str, Any], name: str) -> bytes:
    try:
        found = base64.b64decode(fields[name], validate=True)
    except (KeyError, TypeError, AttributeError, binascii.Error, ValueError) as error:
        raise VerificationError(f"{name} of the signature is no base64") from error
    # The last character has bits that say nothing: else one signature had several texts.
    if base64.b64encode(found).decode("ascii") != fields[name]:
        raise VerificationError(f"{name} of the signature is base64 of an odd form")
    return found
