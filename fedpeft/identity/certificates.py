"""What a certificate says, once it was checked: against the authority, the clock and revocation."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import get_args

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedpeft.errors import IdentityError
from fedpeft.identity.roles import Role, role_of_uri


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Who holds a certificate.

    Attributes:
        name: As the authority wrote it.
        roles: What the holder may be.
        serial: Of the certificate, in hex.
        not_after: End of its validity, UTC.
    """

    name: str
    roles: frozenset[Role]
    serial: str
    not_after: datetime


def read_certificate(path: Path) -> x509.Certificate:
    """Reads one certificate in PEM.

    Raises:
        IdentityError: If there is none.
    """
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise IdentityError(f"expected a certificate in PEM at {path}: {error}") from error


def read_revocations(path: Path) -> x509.CertificateRevocationList:
    """Reads an authority's list of revoked certificates.

    Raises:
        IdentityError: If there is none: who was revoked would then be let in.
    """
    try:
        return x509.load_pem_x509_crl(path.read_bytes())
    except (OSError, ValueError) as error:
        raise IdentityError(f"expected a revocation list in PEM at {path}: {error}") from error


def identify(
    certificate: x509.Certificate,
    authority: x509.Certificate,
    revocations: x509.CertificateRevocationList,
    now: datetime,
) -> Identity:
    """Checks a certificate and returns who holds it.

    TLS checks signature and validity when a connection begins; a service checks them, and the
    revocation that gRPC does not look at, on every call.

    Args:
        certificate: The holder's.
        authority: The certificate of the authority.
        revocations: Its list of revoked certificates.
        now: UTC, with its time zone.

    Raises:
        IdentityError: If it is not the authority's, not valid now, revoked, or the list is not the
            authority's or has expired.
    """
    holder = holder_of(certificate, authority, now)
    _check_revocations(revocations, authority, now)
    if revocations.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None:
        raise IdentityError("the certificate was revoked")
    return holder


def holder_of(
    certificate: x509.Certificate, authority: x509.Certificate, now: datetime
) -> Identity:
    """Returns who holds a certificate that may have been revoked; see `identify`.

    For those who know by other means that it was not.

    Raises:
        IdentityError: If it is not the authority's, or not valid now.
    """
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
        raise IdentityError("the certificate was issued by another authority") from error
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise IdentityError(
            f"the certificate is valid from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} to "
            f"{certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC, and it is {now:%Y-%m-%d %H:%M}"
        )
    return Identity(
        name=name_of(certificate),
        roles=roles_of(certificate),
        serial=f"{certificate.serial_number:x}",
        not_after=certificate.not_valid_after_utc,
    )


def name_of(certificate: x509.Certificate | x509.CertificateSigningRequest) -> str:
    """Returns the common name.

    Raises:
        IdentityError: If there is not exactly one.
    """
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(names) != 1 or not isinstance(names[0].value, str):
        raise IdentityError("expected one common name as the subject of the certificate")
    return names[0].value


def roles_of(certificate: x509.Certificate) -> frozenset[Role]:
    """Returns the roles in the certificate's alternative names.

    Raises:
        IdentityError: If a role is unknown: a newer authority may mean a restriction by it.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return frozenset()
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    roles = [role_of_uri(uri) for uri in uris]
    if None in roles:
        raise IdentityError(f"the certificate names a role that this fedpeft does not know: {uris}")
    return frozenset(role for role in roles if role is not None)


def usages(roles: frozenset[Role]) -> list[x509.ObjectIdentifier]:
    """Returns what the key of a holder with these roles may be used for in TLS."""
    found = []
    if Role.SERVER in roles:
        found.append(ExtendedKeyUsageOID.SERVER_AUTH)
    if roles - {Role.SERVER}:
        found.append(ExtendedKeyUsageOID.CLIENT_AUTH)
    return found


def _check_revocations(
    revocations: x509.CertificateRevocationList, authority: x509.Certificate, now: datetime
) -> None:
    key = authority.public_key()
    # Of whatever kind: an authority of one's own may be older than ours.
    assert isinstance(key, get_args(CertificateIssuerPublicKeyTypes))
    if revocations.issuer != authority.subject or not revocations.is_signature_valid(key):
        raise IdentityError("the revocation list is another authority's, or was changed")
    until = revocations.next_update_utc
    if until is None or now > until:
        raise IdentityError(
            f"the revocation list expired at {until}; get a new one from the authority (`fedpeft "
            "pki refresh` writes it)"
        )
