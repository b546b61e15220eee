"""Signed documents: whose are believed, and that nothing in one can be altered."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedpeft.canonical import canonical
from fedpeft.errors import IdentityError, VerificationError
from fedpeft.identity.keys import new_key
from fedpeft.identity.roles import Role
from fedpeft.registry.signing import KEY_FILE, RegistrySigner
from fedpeft.registry.trust import RegistryTrust
from tests.registry.documents import Federation

KIND = "removal-receipt"


def body(at: datetime | None = None) -> dict[str, Any]:
    return {"what": "größer", "of": [1, None], "created_at": (at or datetime.now(UTC)).isoformat()}


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation(tmp_path_factory.mktemp("federation"))


def test_what_was_signed_is_read(federation: Federation) -> None:
    signer, said = federation.signer(), body()
    document = signer.sign(KIND, said)
    assert federation.trust.verify(KIND, f" {document}\n") == said
    assert RegistryTrust.of_key(signer.public_key_pem).verify(KIND, document) == said
    # The key is kept: the next process signs with the same one.
    assert federation.signer().public_key_pem == signer.public_key_pem
    assert (federation.folder / "coordinator" / KEY_FILE).stat().st_mode & 0o777 == 0o600


def test_no_character_can_be_another(federation: Federation) -> None:
    document = federation.signer().sign(KIND, body())
    for position, was in enumerate(document):
        altered = document[:position] + ("B" if was != "B" else "C") + document[position + 1 :]
        with pytest.raises(VerificationError):
            federation.trust.verify(KIND, altered)
        with pytest.raises(VerificationError):
            federation.trust.verify(KIND, document[:position] + document[position + 1 :])


def test_a_signature_has_one_text(federation: Federation) -> None:
    """The bits that base64 leaves over say nothing, and so could be anything."""
    read = json.loads(federation.signer().sign(KIND, body()))
    value = read["signature"]["value"]
    assert value.endswith("==")
    other = chr(ord(value[-3]) + 1)
    read["signature"]["value"] = f"{value[:-3]}{other}=="
    with pytest.raises(VerificationError, match="base64"):
        federation.trust.verify(KIND, canonical(read))


def test_one_kind_is_not_another(federation: Federation) -> None:
    document = federation.signer().sign(KIND, body())
    with pytest.raises(VerificationError, match="expected a signed adapter-manifest"):
        federation.trust.verify("adapter-manifest", document)
    renamed = document.replace(KIND, "adapter-manifest")
    with pytest.raises(VerificationError, match="altered"):
        federation.trust.verify("adapter-manifest", renamed)


def test_another_key_or_authority_is_not_believed(federation: Federation, tmp_path: Path) -> None:
    other = Federation(tmp_path)
    document = other.signer().sign(KIND, body())
    with pytest.raises(VerificationError, match="not believed"):
        federation.trust.verify(KIND, document)
    with pytest.raises(VerificationError, match="another key"):
        RegistryTrust.of_key(federation.signer().public_key_pem).verify(KIND, document)


def test_who_is_no_server_cannot_answer_for_a_key(federation: Federation) -> None:
    document = federation.signer("operator").sign(KIND, body())
    with pytest.raises(VerificationError, match="no server of the federation"):
        federation.trust.verify(KIND, document)


def test_a_certificate_is_no_endorsement(federation: Federation) -> None:
    """A server's certificate is public: its key must have said so, and of this key."""
    held = federation.credentials()
    forged = RegistrySigner(
        Ed25519PrivateKey.generate(),
        server_key=new_key(federation.folder / "forger" / "key.pem"),
        certificate=held.certificate,
    )
    with pytest.raises(VerificationError, match="did not endorse"):
        federation.trust.verify(KIND, forged.sign(KIND, body()))
    taken = RegistrySigner(
        Ed25519PrivateKey.generate(), server_key=held.key, certificate=held.certificate
    ).sign(KIND, body())
    mixed = json.loads(taken)
    genuine = json.loads(federation.signer().sign(KIND, body()))
    mixed["signature"]["endorsement"] = genuine["signature"]["endorsement"]
    with pytest.raises(VerificationError, match="did not endorse"):
        federation.trust.verify(KIND, canonical(mixed))


def test_a_signature_outlives_the_certificate_but_does_not_precede_it(
    federation: Federation,
) -> None:
    signer = federation.signer()
    for years in (-20, 20):
        at = datetime.now(UTC) + timedelta(days=365 * years)
        with pytest.raises(VerificationError, match="not believed"):
            federation.trust.verify(KIND, signer.sign(KIND, body(at)))


def garbled(change: Callable[[dict[str, Any]], object]) -> Callable[[str], str]:
    def apply(document: str) -> str:
        read = json.loads(document)
        change(read)
        return canonical(read)

    return apply


@pytest.mark.parametrize(
    "alter",
    [
        lambda document: "",
        lambda document: "[" * 100_000,
        lambda document: "[]",
        lambda document: "{}",
        lambda document: "1.5",
        lambda document: '{"a":NaN}',
        lambda document: json.dumps(json.loads(document)),
        lambda document: document.replace('"kind":', '"kind":"x","kind":'),
        lambda document: document.replace("\\u00f6", "ö"),
        lambda document: document + "x" * 2**24,
        garbled(lambda read: read.update(more=1)),
        garbled(lambda read: read.pop("signature")),
        garbled(lambda read: read.update(body=[])),
        garbled(lambda read: read.update(signature=None)),
        garbled(lambda read: read["signature"].update(algorithm="none")),
        garbled(lambda read: read["signature"].update(value="é")),
        garbled(lambda read: read["signature"].update(value=7)),
        garbled(lambda read: read["signature"].update(value="AAAA")),
        garbled(lambda read: read["signature"].update(public_key="AAAA")),
        garbled(lambda read: read["signature"].update(endorsement=None)),
        garbled(lambda read: read["signature"].update(endorsement={})),
        garbled(lambda read: read["signature"]["endorsement"].update(certificate="AAAA")),
    ],
)
def test_what_is_no_signed_document_is_refused(
    federation: Federation, alter: Callable[[str], str]
) -> None:
    document = federation.signer().sign(KIND, body())
    altered = alter(document)
    assert altered != document
    with pytest.raises(VerificationError):
        federation.trust.verify(KIND, altered)


def test_it_says_when_it_was_signed(federation: Federation) -> None:
    for at in ("yesterday", "2026-11-26T12:00:00"):
        document = federation.signer().sign(KIND, {"created_at": at})
        with pytest.raises(VerificationError, match="signed"):
            federation.trust.verify(KIND, document)


def test_a_float_is_not_signed(federation: Federation) -> None:
    with pytest.raises(TypeError, match="float"):
        federation.signer().sign(KIND, {**body(), "epsilon": [{"of": 0.5}]})


def test_a_key_that_others_read_or_of_another_kind(federation: Federation, tmp_path: Path) -> None:
    held = federation.credentials()

    def opened() -> RegistrySigner:
        return RegistrySigner.open(tmp_path, server_key=held.key, certificate=held.certificate)

    opened()
    path = tmp_path / KEY_FILE
    path.chmod(0o640)
    with pytest.raises(IdentityError, match="chmod 600"):
        opened()
    path.unlink()
    new_key(path)
    with pytest.raises(IdentityError, match="another kind of key"):
        opened()
    path.write_bytes(b"")
    with pytest.raises(IdentityError, match="no private key"):
        opened()
    with pytest.raises(IdentityError):
        RegistryTrust.of_key(b"none")
    assert Role.SERVER in federation.holders.roles("coordinator")
