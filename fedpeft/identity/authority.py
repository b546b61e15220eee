"""The authority of a federation: it signs requests, says who may be what, and takes it back.

Its folder:

authority.key.pem     its private key; keep it off the server, and back it up
authority.cert.pem    what everybody trusts; give it to every machine
revoked.crl.pem       who is no longer trusted; give it to the server after each change
issued.jsonl          what was issued, one JSON object a line
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from fedpeft.errors import IdentityError
from fedpeft.files import write_text
from fedpeft.identity.certificates import name_of, read_certificate, read_revocations, usages
from fedpeft.identity.keys import common_name, new_key, read_key
from fedpeft.identity.roles import Role

KEY, CERTIFICATE = "authority.key.pem", "authority.cert.pem"
REVOKED, ISSUED = "revoked.crl.pem", "issued.jsonl"

_OWN_DAYS = 3650
_LIST_DAYS = 30
_MOST_DAYS = 825
_CLOCKS_DIFFER = timedelta(minutes=5)


@dataclass(frozen=True, kw_only=True)
class Issued:
    """One certificate that the authority gave out.

    Attributes:
        serial: In hex.
        name: Of the holder.
        roles: What the holder may be.
        not_after: End of validity, UTC.
        revoked_at: When it was revoked; None where it was not.
    """

    serial: str
    name: str
    roles: frozenset[Role]
    not_after: datetime
    revoked_at: datetime | None


class Authority:
    """An authority with its key at hand."""

    def __init__(self, folder: Path) -> None:
        """Opens the authority in a folder.

        Raises:
            IdentityError: If there is none, or others can read its key.
        """
        self._folder = folder
        self._key = read_key(folder / KEY)
        self.certificate = read_certificate(folder / CERTIFICATE)
        if self.certificate.public_key() != self._key.public_key():
            raise IdentityError(f"key and certificate in {folder} do not belong together")

    @classmethod
    def create(cls, folder: Path, name: str) -> Self:
        """Makes a new authority, valid for ten years, that has issued nothing.

        Raises:
            IdentityError: If there is one already, or the name cannot be used.
        """
        subject, now = common_name(name), datetime.now(UTC)
        folder.mkdir(parents=True, exist_ok=True)
        key = new_key(folder / KEY)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _CLOCKS_DIFFER)
            .not_valid_after(now + timedelta(days=_OWN_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
        )
        _write_certificate(folder / CERTIFICATE, builder.sign(key, hashes.SHA256()))
        authority = cls(folder)
        authority._write_revocations([], number=1)
        return authority

    def issue(
        self,
        request: Path,
        roles: Sequence[Role],
        path: Path,
        *,
        days: int,
        hosts: Sequence[str] = (),
        renew: bool = False,
    ) -> Issued:
        """Signs a request. Only its name and key are taken; roles and hosts are the authority's.

        Args:
            request: What `write_request` wrote.
            roles: What the holder may be.
            path: Where the certificate goes.
            days: Validity, 825 at most.
            hosts: Names and addresses of a server, which clients compare with what they called.
            renew: Whether somebody may hold a valid certificate of that name, to be revoked later.

        Raises:
            IdentityError: If the request is none or was changed, a server has no host, somebody
                holds a valid certificate of that name, or roles or days cannot be granted.
        """
        asked = _read_request(request)
        name = name_of(asked)
        self._check_grant(roles, days, hosts)
        if not renew:
            self._check_new(name)
        now = datetime.now(UTC)
        until = min(now + timedelta(days=days), self.certificate.not_valid_after_utc)
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(r.uri) for r in roles]
        names += [_host(host) for host in hosts]
        key = asked.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        builder = (
            x509.CertificateBuilder()
            .subject_name(common_name(name))
            .issuer_name(self.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _CLOCKS_DIFFER)
            .not_valid_after(until)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages(frozenset(roles))), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
        )
        certificate = builder.sign(self._key, hashes.SHA256())
        # First the record: a certificate that nobody knows of could not be revoked.
        self._record(certificate, name, roles)
        _write_certificate(path, certificate)
        return self.find(f"{certificate.serial_number:x}")

    def revoke(self, serial: str) -> Issued:
        """Takes a certificate back; a second time changes nothing.

        Raises:
            IdentityError: If the authority issued no such certificate.
        """
        issued = self.find(serial)
        if issued.revoked_at is None:
            revocations = read_revocations(self._folder / REVOKED)
            entry = (
                x509.RevokedCertificateBuilder()
                .serial_number(int(issued.serial, 16))
                .revocation_date(datetime.now(UTC))
                .build()
            )
            self._write_revocations([*revocations, entry], number=_number(revocations) + 1)
        return self.find(serial)

    def refresh(self) -> None:
        """Writes the revocation list anew: it expires after 30 days, so that an old copy does."""
        revocations = read_revocations(self._folder / REVOKED)
        self._write_revocations(list(revocations), number=_number(revocations) + 1)

    def issued(self) -> list[Issued]:
        """Returns every certificate that was issued, oldest first.

        Raises:
            IdentityError: If the record cannot be read.
        """
        path = self._folder / ISSUED
        if not path.exists():
            return []
        revocations = read_revocations(self._folder / REVOKED)
        try:
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            return [_issued(line, revocations) for line in lines]
        except (ValueError, KeyError, TypeError) as error:
            raise IdentityError(f"{path} is damaged: {error}") from error

    def find(self, serial: str) -> Issued:
        """Returns the certificate with this serial number.

        Raises:
            IdentityError: If there is none.
        """
        for issued in self.issued():
            if issued.serial == serial.lower():
                return issued
        raise IdentityError(
            f"no certificate with the serial number {serial!r} was issued here; `fedpeft pki list` "
            "shows them"
        )

    def _check_grant(self, roles: Sequence[Role], days: int, hosts: Sequence[str]) -> None:
        if not roles:
            raise IdentityError("a certificate needs at least one role; name one with --role")
        if not 1 <= days <= _MOST_DAYS:
            raise IdentityError(f"a certificate is valid for 1 to {_MOST_DAYS} days, got {days}")
        if (Role.SERVER in roles) != bool(hosts):
            raise IdentityError("a server needs the hosts that it is called by, and no one else")

    def _check_new(self, name: str) -> None:
        now = datetime.now(UTC)
        for other in self.issued():
            if other.name == name and other.revoked_at is None and other.not_after > now:
                raise IdentityError(
                    f"{name!r} holds the certificate {other.serial} until "
                    f"{other.not_after:%Y-%m-%d}; take another name, revoke that first, or "
                    "renew it with --renew"
                )

    def _record(self, certificate: x509.Certificate, name: str, roles: Sequence[Role]) -> None:
        line = {
            "serial": f"{certificate.serial_number:x}",
            "name": name,
            "roles": sorted(roles),
            "not_after": certificate.not_valid_after_utc.isoformat(),
        }
        with (self._folder / ISSUED).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _write_revocations(
        self, revoked: Sequence[x509.RevokedCertificate], *, number: int
    ) -> None:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now)
            .next_update(now + timedelta(days=_LIST_DAYS))
            .add_extension(x509.CRLNumber(number), critical=False)
        )
        for entry in revoked:
            builder = builder.add_revoked_certificate(entry)
        signed = builder.sign(self._key, hashes.SHA256())
        write_text(self._folder / REVOKED, signed.public_bytes(Encoding.PEM).decode("ascii"))


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _read_request(path: Path) -> x509.CertificateSigningRequest:
    try:
        request = x509.load_pem_x509_csr(path.read_bytes())
    except (OSError, ValueError) as error:
        raise IdentityError(f"expected a request in PEM at {path}: {error}") from error
    key = request.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
        raise IdentityError(f"{path} asks for another kind of key; expected ECDSA on P-256")
    if not request.is_signature_valid:
        raise IdentityError(f"{path} was changed after it was signed; ask for a new one")
    return request


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError as error:
        raise IdentityError(f"{host!r} is no name of a host: {error}") from error


def _number(revocations: x509.CertificateRevocationList) -> int:
    return revocations.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


def _issued(line: dict[str, Any], revocations: x509.CertificateRevocationList) -> Issued:
    entry = revocations.get_revoked_certificate_by_serial_number(int(line["serial"], 16))
    return Issued(
        serial=line["serial"],
        name=line["name"],
        roles=frozenset(Role(role) for role in line["roles"]),
        not_after=datetime.fromisoformat(line["not_after"]),
        revoked_at=None if entry is None else entry.revocation_date_utc,
    )


def _write_certificate(path: Path, certificate: x509.Certificate) -> None:
    write_text(path, certificate.public_bytes(Encoding.PEM).decode("ascii"))
