"""The commands of `fedpeft adapter`, against a listening server and offline."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedpeft.cli.main import run
from fedpeft.identity.credentials import AUTHORITY
from fedpeft.registry.folder import read_folder
from tests.registry.documents import signed_manifest, write_folder
from tests.server.control_rig import Rig, listening
from tests.serving.exports import minilm_config, write_export

Fedpeft = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with listening(tmp_path_factory.mktemp("federation")) as opened:
        yield opened


@pytest.fixture
def fedpeft(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Fedpeft:
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object, by: str = "operator", remote: bool = True) -> tuple[int, str, str]:
        there = ("--server", rig.address, "--identity", rig.holders.folder / by) if remote else ()
        words = ("fedpeft", "adapter", *arguments, *there)
        monkeypatch.setattr("sys.argv", list(map(str, words)))
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            run()
        said = capsys.readouterr()
        return int(exit_info.value.code or 0), said.out, said.err

    return call


def test_a_version_from_import_to_withdrawal(rig: Rig, fedpeft: Fedpeft, tmp_path: Path) -> None:
    authority = rig.holders.folder / "coordinator" / AUTHORITY
    versions = []
    for seed in (0, 1):
        folder = tmp_path / f"made-{seed}"
        write_export(folder, minilm_config(), seed=seed, modules=("query",), labels=("a", "b"))
        code, out, err = fedpeft("import", folder, "--base-digest", "b" * 64, "--json")
        assert code == 0, err
        versions.append(json.loads(out)["digest"])
    first, second = versions
    assert fedpeft("deploy", first, "--alias", "production")[0] == 0
    assert first[:12] in fedpeft("aliases")[1]

    out = tmp_path / "out"
    assert fedpeft("export", "production", "-o", out, by="reader")[0] == 0
    assert (out / "manifest.json").exists()
    verify = ("verify", out, "--authority", authority)
    code, said, err = fedpeft(*verify, remote=False)
    assert (code, first in said) == (0, True), err
    code, said, _ = fedpeft("diff", out, tmp_path / "made-0", remote=False)
    assert (code, "no module differs" in said) == (0, True)
    code, said, _ = fedpeft("diff", out, tmp_path / "made-1", "--json", remote=False)
    told = json.loads(said)
    assert all(module["change_norm"] > 0 for module in told["modules"])
    assert told["manifest"]["method"] == ["imported", ""]  # what was made elsewhere has none
    assert fedpeft("export", second, "-o", tmp_path / "second", by="reader")[0] == 0
    code, said, _ = fedpeft("diff", out, tmp_path / "second", remote=False)
    rows = [line.split() for line in said.splitlines() if "run_id" in line]
    runs = [rig.state.adapter(digest).run_id for digest in versions]
    assert (code, rows) == (0, [["run_id", *runs]])
    weights = out / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    code, _, err = fedpeft(*verify, remote=False)
    assert code != 0
    assert "is not what was signed" in err
    assert fedpeft("verify", out, remote=False)[0] != 0  # nobody is named who is believed

    code, said, _ = fedpeft("lineage", "production", "-o", tmp_path / "lineage.svg", "--json")
    assert [v["digest"] for v in json.loads(said)] == [first]
    assert "<svg" in (tmp_path / "lineage.svg").read_text()
    code, _, err = fedpeft("withdraw", "production")
    assert code != 0
    assert "deploy another" in err
    assert fedpeft("deploy", second, "--alias", "production")[0] == 0
    assert fedpeft("withdraw", first, "--reason", "old")[0] == 0
    code, _, err = fedpeft("export", first, "-o", tmp_path / "gone", by="reader")
    assert code != 0
    assert "withdrawn" in err
    assert fedpeft("replicas", by="auditor")[0] == 0


def test_a_manifest_of_other_tensors(rig: Rig, fedpeft: Fedpeft, tmp_path: Path) -> None:
    """Signature and files hold, and the version is not the one that it says."""
    write_export(tmp_path / "made", minilm_config(), seed=0, modules=("query",), labels=("a", "b"))
    files, _ = read_folder(tmp_path / "made")
    signed = signed_manifest(rig.manifests.signer, files=files)
    folder = write_folder(tmp_path / "signed", signed, files)
    authority = rig.holders.folder / "coordinator" / AUTHORITY
    code, _, err = fedpeft("verify", folder, "--authority", authority, remote=False)
    assert code != 0
    assert "the tensors have digest" in err
