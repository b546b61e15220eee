"""Files of an adapter from a server that is not to be trusted: all and sound, or none."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedpeft.errors import InputError, ProtocolError, VerificationError
from fedpeft.remote.download import save_files
from fedpeft.wire.v1.adapters_pb2 import AdapterChunk


def chunks(name: str, *parts: bytes, **changed: object) -> list[AdapterChunk]:
    content = b"".join(parts)
    first = AdapterChunk(
        name=name, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest()
    )
    for field, value in changed.items():
        setattr(first, field, value)
    first.content = parts[0] if parts else b""
    return [first, *(AdapterChunk(content=part) for part in parts[1:])]


def everything(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files_are_saved_as_they_were_sent(tmp_path: Path) -> None:
    sent = [*chunks("a.json", b"{}"), *chunks("b.safetensors", b"1", b"", b"23"), *chunks("c")]
    assert save_files(sent, tmp_path / "x" / "out") == ["a.json", "b.safetensors", "c"]
    saved = {"a.json": b"{}", "b.safetensors": b"123", "c": b""}
    assert everything(tmp_path) == saved


@pytest.mark.parametrize(
    "name",
    [
        *("../x", "/etc/x", "a/b", "a\\b", "..", ".", ".bashrc", "-rf", "a\0b", "a\nb"),
        *("x" * 101, "CON:", "é", "a b", "~"),
    ],
)
def test_names_that_could_leave_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ProtocolError, match="the server sent a file under the name"):
        save_files([*chunks("good", b"1"), *chunks(name, b"2")], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "changed",
    [
        {"size_bytes": 4},
        {"size_bytes": 2},
        {"size_bytes": 2**63},
        {"sha256": "0" * 64},
        {"sha256": ""},
    ],
)
def test_a_file_that_is_not_what_was_announced(tmp_path: Path, changed: dict[str, object]) -> None:
    with pytest.raises(VerificationError):
        save_files(
            [*chunks("good", b"1"), *chunks("bad", b"1", b"23", **changed)], tmp_path / "out"
        )
    assert list(tmp_path.iterdir()) == []


def test_a_file_without_an_end_fills_no_disk(tmp_path: Path) -> None:
    def endless() -> Iterator[AdapterChunk]:
        yield from chunks("a", b"x" * 1000, size_bytes=2000)
        while True:
            yield AdapterChunk(content=b"x" * 1000)

    with pytest.raises(VerificationError, match="longer than the 2000 bytes announced"):
        save_files(endless(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("sent", "match"),
    [
        ([], "sent no file"),
        ([AdapterChunk(content=b"1")], "bytes of no file"),
        ([*chunks("a", b"1"), *chunks("a", b"2")], "under the name 'a'"),
        ([chunk for i in range(65) for chunk in chunks(f"f{i}")], "more than 64 files"),
    ],
)
def test_what_is_no_sequence_of_files(tmp_path: Path, sent: list[AdapterChunk], match: str) -> None:
    with pytest.raises(ProtocolError, match=match):
        save_files(sent, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_broken_stream_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[AdapterChunk]:
        yield from chunks("a", b"1")
        yield from chunks("b", b"2", size_bytes=9)
        raise ConnectionError

    with pytest.raises(ConnectionError):
        save_files(broken(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_stays_there(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("mine")
    with pytest.raises(InputError, match="already holds something"):
        save_files(chunks("a", b"1"), tmp_path / "out")
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError):
            save_files(chunks("a", b"1"), folder)
    assert everything(tmp_path) == {"precious": b"mine", "file": b"mine"}
