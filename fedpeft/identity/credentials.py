"""What one holder needs to be somebody: key, certificate, and the authority's certificate.

The folder of a holder:

key.pem              its private key, made on this machine
request.pem          what the authority was asked for
cert.pem             what the authority gave back
authority.cert.pem   whom to trust
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fedpeft.errors import IdentityError
from fedpeft.identity.certificates import name_of, read_certificate
from fedpeft.identity.keys import read_key

KEY, REQUEST = "key.pem", "request.pem"
CERTIFICATE, AUTHORITY = "cert.pem", "authority.cert.pem"


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """A key with its certificate, checked to belong together.

    Attributes:
        key: Private.
        certificate: Of that key.
        authority: Certificate of the authority that everybody trusts.
    """

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    authority: x509.Certificate

    @classmethod
    def in_folder(cls, folder: Path) -> Self:
        """Reads a holder's folder.

        Raises:
            IdentityError: See `read`.
        """
        if not folder.is_dir():
            raise IdentityError(
                f"there is no folder {folder} with {KEY}, {CERTIFICATE} and {AUTHORITY}; "
                "`fedpeft pki request` begins one"
            )
        return cls.read(folder / KEY, folder / CERTIFICATE, folder / AUTHORITY)

    @classmethod
    def read(cls, key: Path, certificate: Path, authority: Path) -> Self:
        """Reads the three files, each in PEM.

        Raises:
            IdentityError: If one is missing or is something else, others can read the key, the
                certificate is of another key or authority, or is not valid now.
        """
        found = cls(
            key=read_key(key),
            certificate=read_certificate(certificate),
            authority=read_certificate(authority),
        )
        if found.certificate.public_key() != found.key.public_key():
            raise IdentityError(f"the certificate {certificate} is not that of the key {key}")
        try:
            found.certificate.verify_directly_issued_by(found.authority)
        except (ValueError, TypeError, InvalidSignature) as error:
            raise IdentityError(
                f"the certificate {certificate} was not issued by the authority in {authority}; "
                "ask for that authority's certificate, or for a certificate from it"
            ) from error
        found.check_dates(datetime.now(UTC))
        return found

    @property
    def name(self) -> str:
        """The name in the certificate."""
        return name_of(self.certificate)

    def check_dates(self, now: datetime) -> None:
        """Refuses a certificate that does not hold now.

        Raises:
            IdentityError: If it has expired, or its time is yet to come.
        """
        begin, end = self.certificate.not_valid_before_utc, self.certificate.not_valid_after_utc
        if now > end:
            raise IdentityError(
                f"the certificate of {self.name!r} expired on {end:%Y-%m-%d %H:%M} UTC; ask the "
                "authority for a new one (`fedpeft pki issue --renew`)"
            )
        if now < begin:
            raise IdentityError(
                f"the certificate of {self.name!r} is valid from {begin:%Y-%m-%d %H:%M} UTC, and "
                f"this machine's clock says {now:%Y-%m-%d %H:%M}; check the clock"
            )

    @property
    def key_pem(self) -> bytes:
        """The private key, for TLS libraries."""
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    @property
    def certificate_pem(self) -> bytes:
        """The certificate, for TLS libraries."""
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def authority_pem(self) -> bytes:
        """The authority's certificate, for TLS libraries."""
        return self.authority.public_bytes(Encoding.PEM)
