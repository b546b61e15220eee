"""One suite for every kind of place that artifacts can be in."""

import errno
import hashlib
import os
import random
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from fedpeft.errors import ConfigError, InputError, UnavailableError, VerificationError
from fedpeft.registry.artifacts import ArtifactStore
from tests.processes import kill_a_child, read, running
from tests.sandbox import on_small_disk

CONTENT = b"\x00content\xff" * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(params=["folder", "file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "memory":
        name = uuid.uuid4().hex
        yield f"memory://{name}"
        MemoryFileSystem().rm(f"/{name}", recursive=True)
    else:
        folder = tmp_path / "not yet" / "artifacts"
        yield str(folder) if request.param == "folder" else f"file://{folder}"


@pytest.fixture
def store(url: str) -> ArtifactStore:
    return ArtifactStore(url)


def stored(url: str) -> dict[str, bytes]:
    """What lies in the place, by name."""
    if url.startswith("memory://"):
        files, root = MemoryFileSystem(), "/" + url.removeprefix("memory://")
        return {Path(path).name: files.cat_file(path) for path in files.ls(root, detail=False)}
    return {path.name: path.read_bytes() for path in Path(url.removeprefix("file://")).iterdir()}


def overwrite(url: str, digest: str, content: bytes) -> None:
    if url.startswith("memory://"):
        MemoryFileSystem().pipe_file(f"/{url.removeprefix('memory://')}/{digest}", content)
    else:
        Path(url.removeprefix("file://"), digest).write_bytes(content)


def test_content_comes_back_under_its_digest(store: ArtifactStore, url: str) -> None:
    assert not store.has(DIGEST)
    assert store.put(CONTENT) == DIGEST
    assert store.put(CONTENT) == DIGEST
    assert store.has(DIGEST)
    assert store.get(DIGEST) == CONTENT
    assert store.size(DIGEST) == len(CONTENT)
    empty = store.put(b"")
    assert store.get(empty) == b""
    assert store.size(empty) == 0
    assert stored(url) == {DIGEST: CONTENT, empty: b""}
    assert ArtifactStore(url).get(DIGEST) == CONTENT


def test_what_was_deleted_is_gone(store: ArtifactStore, url: str) -> None:
    store.put(CONTENT)
    store.delete(DIGEST)
    store.delete(DIGEST)
    assert not store.has(DIGEST)
    for call in (store.get, store.size):
        with pytest.raises(VerificationError, match=f"artifact {DIGEST} is not in the store"):
            call(DIGEST)
    assert stored(url) == {}
    assert store.put(CONTENT) == DIGEST
    assert store.get(DIGEST) == CONTENT


@pytest.mark.parametrize("damaged", [CONTENT[:-1], b"", CONTENT[:-1] + b"\x00", CONTENT + b"x"])
def test_content_that_was_altered_is_not_given_out_and_can_be_put_again(
    store: ArtifactStore, url: str, damaged: bytes
) -> None:
    store.put(CONTENT)
    overwrite(url, DIGEST, damaged)
    with pytest.raises(VerificationError, match=f"artifact {DIGEST} has {len(damaged)} bytes"):
        store.get(DIGEST)
    assert store.put(CONTENT) == DIGEST
    assert store.get(DIGEST) == CONTENT


@pytest.mark.parametrize(
    "odd",
    [
        *("", "..", "../" + "a" * 61, "/etc/passwd", DIGEST.upper(), DIGEST[:-1], DIGEST + "0"),
        *(DIGEST + "\n", "../../" + DIGEST, DIGEST[:32] + "/" + DIGEST[:31], "a" * 63 + "\x00"),
    ],
)
def test_what_is_no_digest_never_becomes_a_path(store: ArtifactStore, url: str, odd: str) -> None:
    store.put(CONTENT)
    for call in (store.get, store.has, store.size, store.delete):
        with pytest.raises(InputError, match="an artifact is named by its sha256"):
            call(odd)
    assert stored(url) == {DIGEST: CONTENT}


def test_threads_that_put_the_same_content(url: str) -> None:
    """And others that only ever see all of it."""
    content = os.urandom(300_000)
    digest = hashlib.sha256(content).hexdigest()
    reader, seen, done = ArtifactStore(url), set(), threading.Event()

    def watch() -> None:
        while not done.is_set():
            if reader.has(digest):
                seen.add(reader.get(digest))

    watcher = threading.Thread(target=watch)
    watcher.start()
    threads = [threading.Thread(target=ArtifactStore(url).put, args=[content]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    watcher.join()
    assert seen <= {content}
    assert stored(url) == {digest: content}


def test_a_put_that_fails_leaves_nothing(
    url: str, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.EIO, "input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(MemoryFileSystem, "mv", fail)
        broken.setattr(Path, "replace", fail)
        with pytest.raises(UnavailableError, match=r"cannot be written \(input/output error\)"):
            store.put(CONTENT)
    assert stored(url) == {}
    assert not store.has(DIGEST)


def test_a_store_that_does_not_answer(store: ArtifactStore, monkeypatch: Any) -> None:
    store.put(CONTENT)

    def fail(*arguments: Any, **options: Any) -> None:
        raise TimeoutError("no answer")

    for name in ("cat_file", "info", "rm_file"):
        monkeypatch.setattr(store._files, name, fail)
    for call in (store.get, store.has, store.size, store.delete):
        with pytest.raises(UnavailableError, match="no answer"):
            call(DIGEST)
    with pytest.raises(UnavailableError, match="no answer"):
        store.put(CONTENT)


def test_only_the_owner_can_read_a_folder(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "artifacts")
    store.put(CONTENT)
    assert (tmp_path / "artifacts").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "artifacts" / DIGEST).stat().st_mode & 0o777 == 0o600


def test_places_where_no_store_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UnavailableError, match="cannot be opened"):
        ArtifactStore(tmp_path / "file")
    with pytest.raises(ConfigError, match="Protocol not known: nonsense"):
        ArtifactStore("nonsense://bucket")


def test_what_a_killed_put_left_is_swept_away_later(tmp_path: Path) -> None:
    for name, age_s in {"old": 25 * 3600, "new": 60}.items():
        left = tmp_path / f".{DIGEST}.{name}.partial"
        left.touch()
        os.utime(left, (left.stat().st_mtime - age_s,) * 2)
    (tmp_path / "README").touch()
    ArtifactStore(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {f".{DIGEST}.new.partial", "README"}


def test_content_and_name_are_synced_in_that_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ArtifactStore(tmp_path)
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def spy_fsync(descriptor: int) -> None:
        kind = "folder" if Path(f"/proc/self/fd/{descriptor}").resolve().is_dir() else "content"
        steps.append(kind)
        fsync(descriptor)

    def spy_replace(self: Path, target: Path) -> Path:
        steps.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(Path, "replace", spy_replace)
    store.put(CONTENT)
    assert steps == ["content", "rename", "folder"]
    steps.clear()
    store.put(CONTENT)
    # Whoever put it first may have been killed before the folder was synced.
    assert steps == ["folder"]


_FULL = """
import json, os
from pathlib import Path
from fedpeft.errors import UnavailableError
from fedpeft.registry.artifacts import ArtifactStore

folder = Path(os.environ["FOLDER"])
store = ArtifactStore(folder)
small = store.put(b"small")
try:
    store.put(b"x" * 3_000_000)
except UnavailableError as error:
    message = str(error)
files = [path.name for path in folder.iterdir()]
again = store.put(b"y" * 1_000_000)
print(json.dumps({"message": message, "files": files == [small], "again": store.size(again)}))
"""


def test_a_full_disk(tmp_path: Path) -> None:
    found = on_small_disk(_FULL, tmp_path)
    assert "cannot be written (No space left on device)" in found["message"]
    assert found["files"]
    assert found["again"] == 1_000_000


def kill_again_and_again(folder: Path, num_kills: int, order: str) -> int:
    """Kills a process that puts, so often, and returns how often that left a part behind."""
    dice = random.Random(4)
    store = ArtifactStore(folder)
    answered: set[str] = set()
    intact: set[str] = set()
    with running("tests.registry.worker", str(folder), order) as nursery:
        assert read(nursery) == "ready"
        for _ in range(num_kills):
            answered |= set(kill_a_child(nursery, dice, most_lines=4, within_s=0.03))
            visible = {p.name for p in folder.iterdir() if not p.name.startswith(".")}
            assert answered <= visible
            for digest in visible - intact:
                store.get(digest)
            intact |= visible
    return len([p for p in folder.iterdir() if p.name.startswith(".")])


def test_kill_a_put_20_times(tmp_path: Path) -> None:
    kill_again_and_again(tmp_path, 20, "right")


@pytest.mark.slow
def test_kill_a_put_100_times(tmp_path: Path) -> None:
    assert kill_again_and_again(tmp_path, 100, "right") > 5, "the kills missed the puts"


def test_the_kills_find_a_put_that_is_not_atomic(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="bytes that are not those"):
        kill_again_and_again(tmp_path, 40, "wrong")
