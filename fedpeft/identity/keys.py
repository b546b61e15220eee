"""Private keys and what is asked of an authority with them. A key never leaves its machine.

Keys are ECDSA on P-256: every TLS library speaks it.
"""

import os
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from fedpeft.errors import IdentityError
from fedpeft.files import write_text

_LONGEST_NAME = 64  # of a common name, by X.520


def new_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Makes a key in a new file that only its owner can read.

    Raises:
        IdentityError: If there is a file already: a key that is overwritten is lost.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise IdentityError(f"there is a key at {path} already; name another place") from error
    with os.fdopen(file, "wb") as opened:
        opened.write(pem)
        opened.flush()
        os.fsync(opened.fileno())
    return key


def read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Reads a key.

    Raises:
        IdentityError: If there is none, it is of another kind, or others can read it.
    """
    try:
        content = path.read_bytes()
        mode = path.stat().st_mode & 0o077
    except OSError as error:
        raise IdentityError(f"expected a private key at {path}: {error}") from error
    if mode:
        raise IdentityError(f"others can read the private key {path}; run: chmod 600 {path}")
    try:
        key = load_pem_private_key(content, password=None)
    except (ValueError, TypeError) as error:
        raise IdentityError(f"{path} is no private key in PEM: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
        raise IdentityError(f"{path} holds another kind of key; expected ECDSA on P-256")
    return key


def common_name(name: str) -> x509.Name:
    """Returns the subject with this name.

    Raises:
        IdentityError: If the name is empty, too long, or not printable.
    """
    if not name.strip() or len(name) > _LONGEST_NAME or not name.isprintable():
        raise IdentityError(
            f"a name must be printable text of 1 to {_LONGEST_NAME} characters, got {name!r}"
        )
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def write_request(key: ec.EllipticCurvePrivateKey, name: str, path: Path) -> None:
    """Writes a request for a certificate: a name and the public key, signed with the private one.

    Raises:
        IdentityError: If the name cannot be used.
    """
    builder = x509.CertificateSigningRequestBuilder().subject_name(common_name(name))
    request = builder.sign(key, hashes.SHA256())
    write_text(path, request.public_bytes(Encoding.PEM).decode("ascii"))
