"""An authority and the folders of those that it issued certificates to."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from fedpeft.files import write_text
from fedpeft.identity.authority import CERTIFICATE as CA_CERTIFICATE
from fedpeft.identity.authority import KEY as CA_KEY
from fedpeft.identity.authority import REVOKED, Authority
from fedpeft.identity.certificates import roles_of
from fedpeft.identity.credentials import AUTHORITY, CERTIFICATE, KEY, REQUEST, Credentials
from fedpeft.identity.keys import common_name, new_key, read_key, write_request
from fedpeft.identity.roles import Role

LOCAL = ("localhost", "127.0.0.1")


class Holders:
    """A federation's certificates, each in a folder of its own."""

    def __init__(self, folder: Path, name: str = "test authority") -> None:
        self.folder = folder
        self.ca = folder / "ca"
        self.authority = Authority.create(self.ca, name)

    @property
    def revocations(self) -> Path:
        return self.ca / REVOKED

    def issue(
        self, name: str, *roles: Role, hosts: Sequence[str] = (), at: str | None = None
    ) -> Path:
        """A new folder with key.pem, cert.pem and authority.cert.pem."""
        folder = self.folder / (at or name)
        write_request(new_key(folder / KEY), name, folder / REQUEST)
        self.authority.issue(
            folder / REQUEST, roles, folder / CERTIFICATE, days=60, hosts=hosts, renew=True
        )
        write_text(folder / AUTHORITY, (self.ca / CA_CERTIFICATE).read_text())
        return folder

    def issue_without_roles(self, name: str, role: Role | None = None) -> Path:
        """As an authority of one's own might: for callers, with no role or an odd one."""
        folder = self.folder / name
        key = new_key(folder / KEY)
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(common_name(name))
            .issuer_name(self.authority.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=1))
            .not_valid_after(now + timedelta(days=1))
        )
        if role is not None:
            names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(role.uri)])
            builder = builder.add_extension(names, critical=False)
        _write(folder / CERTIFICATE, builder.sign(read_key(self.ca / CA_KEY), hashes.SHA256()))
        write_text(folder / AUTHORITY, (self.ca / CA_CERTIFICATE).read_text())
        return folder

    def server(self) -> Path:
        return self.issue("coordinator", Role.SERVER, hosts=LOCAL)

    def of(self, name: str) -> Credentials:
        return Credentials.in_folder(self.folder / name)

    def roles(self, name: str) -> frozenset[Role]:
        return roles_of(self.of(name).certificate)

    def serial(self, name: str) -> str:
        return f"{self.of(name).certificate.serial_number:x}"

    def expire(self, name: str) -> None:
        """Gives the holder a certificate, signed by the authority, whose time has run out."""
        path = self.folder / name / CERTIFICATE
        held = x509.load_pem_x509_certificate(path.read_bytes())
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder(
            issuer_name=held.issuer,
            subject_name=held.subject,
            public_key=held.public_key(),
            serial_number=held.serial_number,
            not_valid_before=now - timedelta(days=2),
            not_valid_after=now - timedelta(days=1),
            extensions=list(held.extensions),
        )
        _write(path, builder.sign(read_key(self.ca / CA_KEY), hashes.SHA256()))


def _write(path: Path, certificate: x509.Certificate) -> None:
    path.write_bytes(certificate.public_bytes(Encoding.PEM))
