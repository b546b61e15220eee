"""Sealed rows are read with the job's key, for its request, or not at all."""

import secrets

import pytest

from fedpeft.errors import VerificationError
from fedpeft.unlearning import sealing
from fedpeft.unlearning.sealing import OVERHEAD_BYTES, JobKey, open_sealed, seal

REQUEST, OTHER = "0123456789abcdef", "0123456789abcdee"
KEY = JobKey.generate()


@pytest.mark.parametrize("size_bytes", [0, 1, 31, 32, 33, 1_000_003])
def test_what_is_sealed_is_opened(size_bytes: int) -> None:
    content = secrets.token_bytes(size_bytes)
    sealed = seal(KEY.public, REQUEST, content)
    assert open_sealed(KEY.private, REQUEST, sealed) == content
    assert len(sealed) == size_bytes + OVERHEAD_BYTES


def test_nothing_of_the_content_shows() -> None:
    content = b"Basil Mahfouz Al-Kuwaiti was born in Kuwait City " * 20
    sealed = seal(KEY.public, REQUEST, content)
    assert not any(content[i : i + 8] in sealed for i in range(len(content) - 8))


def test_the_same_content_is_never_sealed_the_same() -> None:
    seals = {seal(KEY.public, REQUEST, b"a row") for _ in range(50)}
    assert len({sealed[:32] for sealed in seals}) == 50, "each has a key of its own"
    assert len({sealed[32:] for sealed in seals}) == 50


def test_another_key_does_not_open_it() -> None:
    sealed = seal(KEY.public, REQUEST, b"a row")
    with pytest.raises(VerificationError, match="another key or for another"):
        open_sealed(JobKey.generate().private, REQUEST, sealed)


def test_another_request_does_not_open_it() -> None:
    """Otherwise rows that were sent for one removal could be fed to another."""
    sealed = seal(KEY.public, REQUEST, b"a row")
    for other in (OTHER, "", REQUEST + "0"):
        with pytest.raises(VerificationError, match="another key or for another"):
            open_sealed(KEY.private, other, sealed)


def test_every_altered_byte_is_noticed() -> None:
    sealed = seal(KEY.public, REQUEST, b"a row")
    for place in range(len(sealed)):
        altered = bytearray(sealed)
        altered[place] ^= 1
        with pytest.raises(VerificationError):
            open_sealed(KEY.private, REQUEST, bytes(altered))


@pytest.mark.parametrize("left", [0, 1, 31, 32, 47])
def test_what_was_cut_off_is_refused(left: int) -> None:
    with pytest.raises(VerificationError, match="at least 48 bytes"):
        open_sealed(KEY.private, REQUEST, seal(KEY.public, REQUEST, b"a row")[:left])
    with pytest.raises(VerificationError):
        open_sealed(KEY.private, REQUEST, seal(KEY.public, REQUEST, b"a row")[:-1])


@pytest.mark.parametrize(
    "public", [b"", b"\x01" * 31, b"\x01" * 33, bytes(32), b"\x01" + bytes(31)], ids=str
)
def test_a_key_that_is_none_is_refused(public: bytes) -> None:
    """The last two are points of small order: everybody would know the secret."""
    with pytest.raises(VerificationError, match="X25519 public key"):
        seal(public, REQUEST, b"a row")
    with pytest.raises(VerificationError):
        open_sealed(KEY.private, REQUEST, public + bytes(64))


def test_a_private_key_of_another_length() -> None:
    with pytest.raises(VerificationError, match="a job's key is 32 bytes, got 31"):
        open_sealed(KEY.private[:31], REQUEST, seal(KEY.public, REQUEST, b"a row"))


def test_the_private_key_is_not_shown() -> None:
    assert KEY.private.hex() not in repr(KEY)
    assert repr(KEY.private) not in repr(KEY)
    assert KEY.public.hex() in repr(KEY)


def test_the_purpose_is_part_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another part of fedpeft might seal some day is not taken for rows."""
    sealed = seal(KEY.public, REQUEST, b"a row")
    monkeypatch.setattr(sealing, "_PURPOSE", b"fedpeft something else 1")
    with pytest.raises(VerificationError):
        open_sealed(KEY.private, REQUEST, sealed)


def test_it_stays_readable() -> None:
    """Sealed by the first version of this module."""
    private = bytes(range(32))
    sealed = bytes.fromhex(SEALED_ONCE)
    assert open_sealed(private, REQUEST, sealed) == b'{"forget":[]}'


SEALED_ONCE = (
    "bf9631bc1d3503d1406509531abcfee495623b23bf2daee86e70205b13bc1c5624a5ac27ed78a4f4"
    "dd9272e74eaa6d7de03afdda17cade0a7f44938cef"
)
