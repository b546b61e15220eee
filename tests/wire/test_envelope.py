"""Who signed what: an envelope holds for one kind of body, one key, one valid certificate."""

from datetime import datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from fedpeft.errors import FedpeftError, IdentityError, ProtocolError
from fedpeft.identity.authority import CERTIFICATE, REVOKED, Authority
from fedpeft.identity.certificates import Identity, identify, read_certificate, read_revocations
from fedpeft.identity.keys import new_key, write_request
from fedpeft.identity.roles import Role
from fedpeft.wire.envelope import seal, unseal
from fedpeft.wire.v1 import rounds_pb2 as pb

KIND, BODY = "RoundReply", b"the body"


class Federation:
    """An authority, and people who hold its certificates."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority.create(folder / "ca", "test")

    def identify(self, certificate: x509.Certificate, now: datetime) -> Identity:
        ca = self.folder / "ca"
        revoked = read_revocations(ca / REVOKED)
        return identify(certificate, read_certificate(ca / CERTIFICATE), revoked, now)

    def holder(self, name: str) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        folder = self.folder / name
        key = new_key(folder / "key.pem")
        write_request(key, name, folder / "request.pem")
        path = folder / "cert.pem"
        self.authority.issue(folder / "request.pem", [Role.DATA_OWNER], path, days=1)
        return key, read_certificate(path)


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation(tmp_path)


def test_body_and_signer_come_back(federation: Federation) -> None:
    envelope = seal(KIND, BODY, *federation.holder("clinic"))

    body, identity = unseal(KIND, envelope, federation.identify)

    assert (body, identity.name) == (BODY, "clinic")
    assert identity.roles == {Role.DATA_OWNER}


def test_one_kind_is_not_taken_for_another(federation: Federation) -> None:
    envelope = seal("RoundPlan", BODY, *federation.holder("clinic"))

    with pytest.raises(IdentityError, match="not signed by clinic"):
        unseal(KIND, envelope, federation.identify)


def test_a_certificate_without_its_key_signs_nothing(federation: Federation) -> None:
    key, _ = federation.holder("attacker")
    _, certificate = federation.holder("clinic")

    with pytest.raises(IdentityError, match="not signed by clinic"):
        unseal(KIND, seal(KIND, BODY, key, certificate), federation.identify)


def test_a_certificate_of_another_authority_is_refused(
    federation: Federation, tmp_path: Path
) -> None:
    stranger = Federation(tmp_path / "other").holder("clinic")

    with pytest.raises(IdentityError, match="another authority"):
        unseal(KIND, seal(KIND, BODY, *stranger), federation.identify)


def test_a_revoked_signer_is_refused(federation: Federation) -> None:
    holder = federation.holder("clinic")
    envelope = seal(KIND, BODY, *holder)
    federation.authority.revoke(f"{holder[1].serial_number:x}")

    with pytest.raises(IdentityError, match="revoked"):
        unseal(KIND, envelope, federation.identify)


def test_every_changed_byte_is_found(federation: Federation) -> None:
    envelope = bytearray(seal(KIND, BODY, *federation.holder("clinic")))
    for place in range(len(envelope)):
        changed = envelope.copy()
        changed[place] ^= 1
        try:
            body, _ = unseal(KIND, bytes(changed), federation.identify)
        except FedpeftError as error:
            assert isinstance(error, ProtocolError | IdentityError)  # noqa: PT017
        else:
            # A tag that became an unknown field; what was signed is what is given out.
            assert body == BODY


@pytest.mark.parametrize(
    "envelope", [b"", b"no envelope", pb.Signed(body=b"x").SerializeToString()]
)
def test_what_is_no_envelope_is_refused(federation: Federation, envelope: bytes) -> None:
    with pytest.raises(ProtocolError):
        unseal(KIND, envelope, federation.identify)
