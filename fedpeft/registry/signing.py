"""What a registry says and signs: manifests of adapter versions, receipts of removals.

A signed document is one line of canonical JSON:

    {"body": {…}, "kind": "adapter-manifest", "signature": {
        "algorithm": "Ed25519", "public_key": …, "value": …,
        "endorsement": {"certificate": …, "value": …}}}

`value` is the Ed25519 signature over "fedpeft.registry" 0x00 kind 0x00 the body's canonical JSON.
The endorsement is the server's: its certificate, and the ECDSA signature of that certificate's key
over "fedpeft.registry.key" 0x00 the Ed25519 public key. So whoever has the authority's certificate
can check a document for ever, with no server. Bytes are in base64.
"""

import base64
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from fedpeft.canonical import canonical
from fedpeft.errors import IdentityError
from fedpeft.files import sync

KEY_FILE = "registry.key.pem"
ALGORITHM = "Ed25519"


class RegistrySigner:
    """Signs in a registry's name."""

    def __init__(
        self,
        key: Ed25519PrivateKey,
        *,
        server_key: ec.EllipticCurvePrivateKey,
        certificate: x509.Certificate,
    ) -> None:
        """Takes the registry's key, and the server that answers for it.

        Args:
            key: Of the registry.
            server_key: Of the server.
            certificate: Of the server's key, from the federation's authority.
        """
        self._key = key
        self._public_key = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self._endorsement = {
            "certificate": _text(certificate.public_bytes(Encoding.DER)),
            "value": _text(server_key.sign(endorsed(self._public_key), ec.ECDSA(hashes.SHA256()))),
        }

    @classmethod
    def open(
        cls, folder: Path, *, server_key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate
    ) -> Self:
        """Reads the key in a folder; makes it where there is none.

        Raises:
            IdentityError: If it cannot be read or made, is of another kind, or others can read it.
        """
        path = folder / KEY_FILE
        if not path.exists():
            _make(path)
        return cls(_read(path), server_key=server_key, certificate=certificate)

    @property
    def public_key_pem(self) -> bytes:
        """For those who trust this key and ask no authority."""
        return self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def sign(self, kind: str, body: Mapping[str, Any]) -> str:
        """Returns the signed document.

        Args:
            kind: What it is, so that one cannot be taken for another.
            body: Values of canonical JSON; `created_at`, in ISO 8601, is when it is signed.

        Raises:
            TypeError: If a value has no canonical JSON.
        """
        assert isinstance(body.get("created_at"), str)
        signature = {
            "algorithm": ALGORITHM,
            "public_key": _text(self._public_key),
            "value": _text(self._key.sign(signed(kind, body))),
            "endorsement": self._endorsement,
        }
        return canonical({"kind": kind, "body": dict(body), "signature": signature})


def signed(kind: str, body: Mapping[str, Any]) -> bytes:
    """Returns the bytes that a signature is over."""
    return f"fedpeft.registry\0{kind}\0{canonical(dict(body))}".encode("ascii")


def endorsed(public_key: bytes) -> bytes:
    """Returns the bytes that an endorsement is over."""
    return b"fedpeft.registry.key\0" + public_key


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


def _make(path: Path) -> None:
    pem = Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    partial = path.with_name(f".{path.name}.new")
    try:
        partial.unlink(missing_ok=True)
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
        sync(path.parent)
    except OSError as error:
        raise IdentityError(f"the registry's key {path} cannot be made ({error})") from error


def _read(path: Path) -> Ed25519PrivateKey:
    try:
        content = path.read_bytes()
        mode = path.stat().st_mode & 0o077
    except OSError as error:
        raise IdentityError(f"expected the registry's key at {path}: {error}") from error
    if mode:
        raise IdentityError(f"others can read the private key {path}; run: chmod 600 {path}")
    try:
        key = load_pem_private_key(content, password=None)
    except (ValueError, TypeError) as error:
        raise IdentityError(f"{path} is no private key in PEM: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise IdentityError(f"{path} holds another kind of key; expected {ALGORITHM}")
    return key
