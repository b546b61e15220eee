"""Adapter versions through the SDK: their lineage, and their files on this side."""

import hashlib
from pathlib import Path

import pytest

from fedpeft.errors import InputError, RemoteError
from tests.server.control_rig import Rig
from tests.server.runs import digest, export, play_round, submitted

FILES = {
    "adapter_config.json": b"{}",
    "adapter_model.safetensors": bytes(range(256)) * 12_000,  # three chunks
    "README.md": b"",
}


def test_versions_and_their_parents(rig: Rig) -> None:
    run_id = submitted(rig)
    first, second = play_round(rig, run_id, 1), play_round(rig, run_id, 2)
    reader = rig.connect("reader")
    found = reader.list_adapters(run_id)
    assert [(a.round, a.digest, a.parent) for a in found] == [
        (0, digest(run_id, 0), None),
        (1, first, digest(run_id, 0)),
        (2, second, first),
    ]
    assert found[2].epsilon == {"clinic": 1.0}
    assert found[2].participants == ("clinic",)
    assert reader.get_adapter(second[:8]) == reader.get_adapter(run_id) == found[2]
    assert found[2] in reader.list_adapters()


def test_files_arrive_as_they_are(rig: Rig, tmp_path: Path) -> None:
    run_id = submitted(rig)
    adapter = play_round(rig, run_id, 1)
    export(rig, run_id, adapter, FILES)
    reader = rig.connect("reader")
    assert reader.get_adapter(adapter).exported
    names = reader.download_adapter(adapter[:10], tmp_path / "out")
    assert sorted(names) == sorted(FILES)
    got = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert got == FILES
    with pytest.raises(InputError, match="already holds something"):
        reader.download_adapter(adapter, tmp_path / "out")
    empty = tmp_path / "empty"
    empty.mkdir()
    reader.download_adapter(run_id, empty)
    assert len(list(empty.iterdir())) == len(FILES)


def test_a_damaged_artifact_is_not_given_out(rig: Rig, tmp_path: Path) -> None:
    run_id = submitted(rig)
    adapter = play_round(rig, run_id, 1)
    content = b"weights of " + run_id.encode()
    export(rig, run_id, adapter, {"adapter_model.safetensors": content})
    name = hashlib.sha256(content).hexdigest()
    [stored] = [path for path in (rig.folder / "artifacts").rglob(f"*{name[2:]}") if path.is_file()]
    stored.chmod(0o600)
    stored.write_bytes(content[:-1] + b"!")
    with pytest.raises(RemoteError) as refused:
        rig.connect("reader").download_adapter(adapter, tmp_path / "out")
    assert refused.value.code == "damaged"
    assert list(tmp_path.iterdir()) == []


def test_adapters_of_no_run(rig: Rig) -> None:
    with pytest.raises(RemoteError) as refused:
        rig.connect("reader").get_adapter("0" * 16)
    assert refused.value.code == "no-such-adapter"
    with pytest.raises(RemoteError) as refused:
        rig.connect("reader").list_adapters("0" * 16)
    assert refused.value.code == "no-such-run"


def test_a_prefix_of_several_is_none(rig: Rig) -> None:
    """Names are compared whole: no sign in one stands for others."""
    # The second could be the name of an alias, and is none.
    for name, code in (
        ("_" * 8, "invalid"),
        ("abcdef1", "no-such-adapter"),
        ("%" * 8, "invalid"),
        ("", "invalid"),
        ("../../etc/passwd", "invalid"),
    ):
        with pytest.raises(RemoteError) as refused:
            rig.connect("reader").get_adapter(name)
        assert refused.value.code == code
