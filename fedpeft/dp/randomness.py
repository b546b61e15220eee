"""The generator behind every secret coin: Poisson sampling and noise.

An AES-256 key stream in counter mode (NIST SP 800-90A's CTR construction without reseeding).
The key comes from the operating system, so neither the server nor whoever knows a run's seed can
predict a sample or subtract the noise. A statistical generator such as Mersenne Twister or Philox
may not be used here: a few hundred outputs of the first reveal the rest, and both have seeds short
enough to try.
"""

import hashlib
import os
from typing import Self

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

from fedpeft.errors import PrivacyError

_KEY_BYTES = 32


class Keystream:
    """Uniform 64-bit words from AES-256-CTR."""

    def __init__(self, key: bytes, *, secure: bool) -> None:
        """Takes a 32-byte key; `secure` states that nobody else can know it."""
        if len(key) != _KEY_BYTES:
            raise ValueError(f"expected a key of {_KEY_BYTES} bytes, got {len(key)}")
        self.secure = secure
        self._process = os.getpid()
        self._encryptor = Cipher(AES(key), CTR(bytes(16))).encryptor()

    @classmethod
    def from_system(cls) -> Self:
        """Returns a generator keyed by the operating system."""
        return cls(os.urandom(_KEY_BYTES), secure=True)

    @classmethod
    def insecure_from_seed(cls, seed: int) -> Self:
        """Returns a repeatable generator. Its noise protects nobody who can guess the seed."""
        return cls(hashlib.sha256(f"fedpeft insecure seed {seed}".encode()).digest(), secure=False)

    def words(self, count: int) -> NDArray[np.uint64]:
        """Returns `count` independent uniform words, shape (count,).

        Raises:
            PrivacyError: If a secret stream is read in a forked process: parent and child would
                draw the same noise, and the difference of their releases would hold none.
        """
        if self.secure and os.getpid() != self._process:
            raise PrivacyError(
                "this key stream was made before the process forked; make one in each process"
            )
        stream = self._encryptor.update(bytes(8 * count))
        return np.frombuffer(stream, dtype="<u8").astype(np.uint64, copy=False)
