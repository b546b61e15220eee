"""An exported folder: exactly the files that were signed; and the manifest's one form."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedpeft.errors import AdapterError, VerificationError
from fedpeft.registry.folder import verified_folder
from fedpeft.registry.manifest import KIND, Manifest
from tests.registry.documents import (
    FILES,
    Federation,
    a_manifest,
    signed_manifest,
    write_folder,
)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation(tmp_path_factory.mktemp("federation"))


@pytest.fixture
def folder(federation: Federation, tmp_path: Path) -> Path:
    return write_folder(tmp_path / "export", signed_manifest(federation.signer()))


def test_an_export_as_it_was_signed(federation: Federation, folder: Path) -> None:
    manifest, contents = verified_folder(folder, federation.trust)
    assert contents == FILES
    assert manifest == Manifest.from_body(manifest.to_body())
    assert manifest.metrics == {"accuracy": 0.1 + 0.2, "loss": float("inf")}


def test_every_byte_of_every_file_counts(federation: Federation, folder: Path) -> None:
    for name, content in FILES.items():
        for position in range(len(content)):
            altered = bytearray(content)
            altered[position] ^= 1
            (folder / name).write_bytes(altered)
            with pytest.raises(VerificationError, match=f"{name} is not what was signed"):
                verified_folder(folder, federation.trust)
        (folder / name).write_bytes(content + b" ")
        with pytest.raises(VerificationError, match=f"{name} is not what was signed"):
            verified_folder(folder, federation.trust)
        (folder / name).write_bytes(content)
    verified_folder(folder, federation.trust)


def test_a_file_is_missing_or_too_much(federation: Federation, folder: Path) -> None:
    (folder / "pickle.bin").write_bytes(b"")
    with pytest.raises(VerificationError, match=r"pickle\.bin does not belong"):
        verified_folder(folder, federation.trust)
    (folder / "pickle.bin").unlink()
    (folder / "adapter_config.json").unlink()
    with pytest.raises(VerificationError, match=r"adapter_config\.json is missing"):
        verified_folder(folder, federation.trust)


def test_what_is_no_export(federation: Federation, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="cannot be read"):
        verified_folder(tmp_path / "nowhere", federation.trust)
    os.mkfifo(folder / "pipe")  # reading it would never end
    with pytest.raises(AdapterError, match="no exported adapter"):
        verified_folder(folder, federation.trust)
    (folder / "pipe").unlink()
    (folder / "manifest.json").write_bytes(b"\xff\xfe")
    with pytest.raises(VerificationError):
        verified_folder(folder, federation.trust)
    (folder / "manifest.json").unlink()
    with pytest.raises(VerificationError, match="not signed"):
        verified_folder(folder, federation.trust)


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body.pop("removal"),
        lambda body: body.update(more=""),
        lambda body: body.update(version=2),
        lambda body: body.update(digest="d" * 63),
        lambda body: body.update(artifact="../" + "a" * 61),
        lambda body: body.update(parents=["C" * 64]),
        lambda body: body.update(parents="c" * 64),
        lambda body: body.update(round=-1),
        lambda body: body.update(round=True),
        lambda body: body.update(guarantee="perfect"),
        lambda body: body.update(base_digest=None),
        lambda body: body.update(metrics={"accuracy": "1"}),
        lambda body: body.update(metrics={"accuracy": "0.50"}),
        lambda body: body.update(metrics=[]),
        lambda body: body["participants"][0].update(epsilon="nought"),
        lambda body: body["participants"][0].update(epsilon=1),
        lambda body: body["participants"][0].pop("delta"),
        lambda body: body.update(participants=["clinic"]),
        lambda body: body["files"]["adapter_config.json"].update(size_bytes=-1),
        lambda body: body["files"]["adapter_config.json"].update(path="/"),
        *(
            lambda body, name=name: body["files"].update(
                {name: body["files"]["adapter_config.json"]}
            )
            for name in ("../key.pem", "/etc/passwd", "a/b", "..", ".hidden", "", "a\0b", "a\n")
        ),
    ],
)
def test_a_manifest_of_another_form_is_refused(
    federation: Federation, change: Callable[[dict[str, Any]], object]
) -> None:
    """Signed or not: a server that was broken into signs anything."""
    body = a_manifest().to_body()
    change(body)
    read = federation.trust.verify(KIND, federation.signer().sign(KIND, body))
    with pytest.raises(VerificationError):
        Manifest.from_body(read)
