"""`fedpeft adapter push-vllm`, against recorded answers over real HTTP."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from fedpeft.cli.main import run
from fedpeft.serving.adapter_files import read_export_folder
from fedpeft.serving.served_model import ServedModel
from tests.serving.exports import stories_config, write_export
from tests.serving.recorded_vllm import RecordedVllm, listening
from tests.serving.signed import SignedRegistry


@dataclass(kw_only=True)
class Place:
    """Two signed exports, and a server."""

    exports: list[Path]
    digests: list[str]
    recorded: RecordedVllm
    push: Callable[..., int]


@pytest.fixture
def place(tmp_path: Path, shared_models: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    config = stories_config(shared_models)
    model = ServedModel(config.name, "causal-lm", device="cpu")
    registry = SignedRegistry(tmp_path / "registry", model.digest)
    exports = [tmp_path / str(seed) for seed in range(2)]
    for seed, export in enumerate(exports):
        write_export(export, config, seed=seed)
    digests = [registry.add(export) for export in exports]
    authority = tmp_path / "authority.cert.pem"
    authority.write_bytes(registry.authority.public_bytes(Encoding.PEM))
    recorded = RecordedVllm(
        model, {f"/seen/{n}": read_export_folder(export) for n, export in enumerate(exports)}
    )
    with listening(recorded) as server:

        def push(n: int, *arguments: str) -> int:
            command = ["fedpeft", "adapter", "push-vllm", str(exports[n]), "--path", f"/seen/{n}"]
            command += ["--url", f"http://127.0.0.1:{server.port}", "--alias", "production"]
            command += ["--model", config.name, "--authority", str(authority), *arguments]
            monkeypatch.setattr(sys, "argv", command)
            with pytest.raises(SystemExit) as ended:
                run()
            return int(ended.value.code or 0)

        yield Place(exports=exports, digests=digests, recorded=recorded, push=push)


def test_a_version_is_pushed_and_the_one_before_unloaded(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    assert place.push(0) == 0
    assert place.push(1, "--json") == 0
    said = capsys.readouterr().out
    told = json.loads(said[said.index("{") :])
    names = [f"production-{digest[:12]}" for digest in place.digests]
    assert (told["name"], told["adapter"]) == (names[1], place.digests[1])
    assert told["unloaded"] == [names[0]]
    assert told["distance"] < 1e-4
    assert list(place.recorded.loaded) == [names[1]]
    assert place.push(0, "--in-place") == 0
    assert place.recorded.resets == 0  # nothing had the alias as its name before
    assert place.push(1, "--in-place") == 0
    assert place.recorded.resets == 1


def test_what_is_not_pushed(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert place.push(0) == 0
    before = dict(place.recorded.loaded)
    place.recorded.does_nothing = True
    assert place.push(1) == 3
    assert "the swap did nothing" in capsys.readouterr().err
    place.recorded.does_nothing = False
    assert place.push(1, "--path", "/elsewhere") == 4
    assert "No adapter found" in capsys.readouterr().err
    (place.exports[1] / "manifest.json").unlink()
    assert place.push(1) == 3
    assert "is not signed" in capsys.readouterr().err
    assert place.push(0, "--in-place", "--keep") == 2
    assert place.recorded.loaded == before
