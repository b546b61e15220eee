"""Rows sealed to the key of one removal job: who has the key reads them, and nobody without it.

X25519 with a key pair of the sender that is used once, HKDF-SHA256 over both public keys and the
request, ChaCha20-Poly1305. It is the construction of RFC 9180 (HPKE, base mode), with a key for
each message, so that the nonce may be derived with the key.
"""

from typing import Final, NamedTuple, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedpeft.errors import VerificationError

PUBLIC_KEY_BYTES: Final = 32
OVERHEAD_BYTES: Final = PUBLIC_KEY_BYTES + 16
"""What sealed content is longer than the content."""
_PURPOSE: Final = b"fedpeft removal rows 1"
_KEY_BYTES, _NONCE_BYTES = 32, 12


class JobKey(NamedTuple):
    """The key pair of one job, raw; without the private key what was sealed is gone."""

    private: bytes
    public: bytes

    @classmethod
    def generate(cls) -> Self:
        """Returns a new one."""
        key = X25519PrivateKey.generate()
        return cls(key.private_bytes_raw(), key.public_key().public_bytes_raw())

    def __repr__(self) -> str:
        return f"JobKey(public={self.public.hex()})"


def seal(public: bytes, request_id: str, content: bytes) -> bytes:
    """Returns content that only the holder of the job's key can read.

    Args:
        public: The job's public key, 32 bytes.
        request_id: Of the removal request; it can be opened as part of no other.
        content: Of any length.

    Raises:
        VerificationError: If the key is none.
    """
    sender = X25519PrivateKey.generate()
    ours = sender.public_key().public_bytes_raw()
    cipher, nonce = _cipher(sender, public, sender=ours, receiver=public, request_id=request_id)
    return ours + cipher.encrypt(nonce, content, None)


def open_sealed(private: bytes, request_id: str, sealed: bytes) -> bytes:
    """Returns what was sealed.

    Raises:
        VerificationError: If it was sealed to another key or for another request, or was altered.
    """
    if len(sealed) < OVERHEAD_BYTES:
        raise VerificationError(
            f"sealed rows are at least {OVERHEAD_BYTES} bytes, got {len(sealed)}; send them again"
        )
    try:
        key = X25519PrivateKey.from_private_bytes(private)
    except ValueError as error:
        raise VerificationError(f"a job's key is {_KEY_BYTES} bytes, got {len(private)}") from error
    theirs, body = sealed[:PUBLIC_KEY_BYTES], sealed[PUBLIC_KEY_BYTES:]
    own = key.public_key().public_bytes_raw()
    cipher, nonce = _cipher(key, theirs, sender=theirs, receiver=own, request_id=request_id)
    try:
        return cipher.decrypt(nonce, body, None)
    except InvalidTag as error:
        raise VerificationError(
            "the sealed rows cannot be opened: they were sealed to another key or for another "
            "request, or were altered; send them again"
        ) from error


def _cipher(
    key: X25519PrivateKey, other: bytes, *, sender: bytes, receiver: bytes, request_id: str
) -> tuple[ChaCha20Poly1305, bytes]:
    try:
        shared = key.exchange(X25519PublicKey.from_public_bytes(other))
    except ValueError as error:  # too short, or a point that gives everybody the same secret
        raise VerificationError(
            f"expected an X25519 public key of {PUBLIC_KEY_BYTES} bytes; what came is none"
        ) from error
    # Fields of fixed length first, so that no two requests have one text.
    info = _PURPOSE + sender + receiver + request_id.encode()
    derived = HKDF(SHA256(), _KEY_BYTES + _NONCE_BYTES, salt=None, info=info).derive(shared)
    return ChaCha20Poly1305(derived[:_KEY_BYTES]), derived[_KEY_BYTES:]
