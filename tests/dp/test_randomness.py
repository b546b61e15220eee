import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB
from numpy.typing import NDArray
from scipy import stats

from fedpeft.dp.randomness import Keystream
from fedpeft.errors import PrivacyError


def test_words_are_aes_256_of_a_counter():
    key = bytes(range(32))
    blocks = b"".join(counter.to_bytes(16, "big") for counter in range(50))
    encrypted = Cipher(AES(key), ECB()).encryptor().update(blocks)
    expected = [int.from_bytes(encrypted[i : i + 8], "little") for i in range(0, 800, 8)]
    assert Keystream(key, secure=True).words(100).tolist() == expected


def test_first_block_is_the_published_known_answer():
    # NIST AESAVS: AES-256 of the zero block under the zero key.
    first = Keystream(bytes(32), secure=False).words(2)
    assert first.astype("<u8").tobytes().hex() == "dc95c078a2408989ad48a21492842087"


def test_stream_goes_on_where_the_last_call_ended():
    together, apart = (Keystream.insecure_from_seed(3) for _ in range(2))
    parts = [apart.words(count) for count in (3, 0, 5, 1)]
    assert np.array_equal(together.words(9), np.concatenate(parts))


def test_words_are_native_64_bit():
    assert Keystream.insecure_from_seed(0).words(4).dtype == np.dtype(np.uint64)


def test_system_streams_differ_and_are_secure():
    one, other = Keystream.from_system(), Keystream.from_system()
    assert one.secure
    assert other.secure
    assert not np.any(one.words(64) == other.words(64))


def test_seeded_streams_repeat_and_are_not_secure():
    one, same, other = (Keystream.insecure_from_seed(seed) for seed in (7, 7, 8))
    assert not one.secure
    words = one.words(64)
    assert np.array_equal(words, same.words(64))
    assert not np.any(words == other.words(64))


def _uniformity(words: NDArray[np.uint64]) -> float:
    """Smallest chi-squared p-value over the eight bytes of a word and over its single bits."""
    octets = words.view(np.uint8).reshape(-1, 8)
    by_byte = [stats.chisquare(np.bincount(octets[:, i], minlength=256)).pvalue for i in range(8)]
    ones = np.unpackbits(octets, axis=1).sum(0)
    by_bit = [stats.binomtest(int(count), len(words)).pvalue for count in ones]
    return float(min(by_byte + by_bit))


def test_words_are_uniform():
    words = Keystream.insecure_from_seed(1).words(20_000)
    assert _uniformity(words) > 1e-4
    # A generator of 63 bits, and one whose low byte is a little likelier to be zero.
    assert _uniformity(words >> np.uint64(1)) < 1e-10
    biased = np.where(np.arange(len(words)) % 64 == 0, words & ~np.uint64(255), words)
    assert _uniformity(biased) < 1e-10


def test_forked_process_may_not_repeat_a_secret_stream(monkeypatch: pytest.MonkeyPatch):
    secret, seeded = Keystream.from_system(), Keystream.insecure_from_seed(0)
    monkeypatch.setattr("os.getpid", lambda: -1)
    with pytest.raises(PrivacyError, match="forked"):
        secret.words(1)
    seeded.words(1)


def test_short_key_is_refused():
    with pytest.raises(ValueError, match="32 bytes"):
        Keystream(bytes(16), secure=True)
