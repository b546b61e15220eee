"""A federation with two servers of its own, and one whose authority is another."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from fedpeft.identity.credentials import Credentials
from fedpeft.identity.roles import Role
from fedpeft.registry.manifest import FILE_NAME, KIND, Manifest, ManifestFile, ManifestParticipant
from fedpeft.registry.signing import RegistrySigner
from fedpeft.registry.trust import RegistryTrust
from tests.server.holders import Holders

FILES = {"adapter_config.json": b"{}", "adapter_model.safetensors": bytes(range(256))}


class Federation:
    """Signs as anybody that its authority knows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.holders = Holders(folder)
        self.holders.issue("coordinator", Role.SERVER, hosts=("localhost",))
        self.holders.issue("operator", Role.OPERATOR)

    def credentials(self, name: str = "coordinator") -> Credentials:
        return self.holders.of(name)

    def signer(self, name: str = "coordinator") -> RegistrySigner:
        """Of the registry in the holder's folder, for which the holder answers."""
        held = self.credentials(name)
        return RegistrySigner.open(
            self.folder / name, server_key=held.key, certificate=held.certificate
        )

    @property
    def trust(self) -> RegistryTrust:
        return RegistryTrust.of_authority(self.credentials().authority)


def a_manifest(files: Mapping[str, bytes] = FILES, **change: object) -> Manifest:
    manifest = Manifest(
        digest="d" * 64,
        artifact="a" * 64,
        base_model="größer",
        base_digest="b" * 64,
        method="federated",
        parents=("c" * 64,),
        run_id="0" * 16,
        round=2,
        participants=(
            ManifestParticipant(client_id="clinic", dataset="e" * 64, epsilon=0.1, delta=1e-5),
            ManifestParticipant(client_id="lab", dataset="", epsilon=None, delta=None),
        ),
        metrics={"accuracy": 0.1 + 0.2, "loss": float("inf")},
        guarantee="none",
        removal="",
        files={
            name: ManifestFile(sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
            for name, content in files.items()
        },
        created_at=datetime.now(UTC),
    )
    return replace(manifest, **change)  # type: ignore[arg-type]


def write_folder(folder: Path, document: str, files: Mapping[str, bytes] = FILES) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / FILE_NAME).write_text(document + "\n", encoding="ascii")
    return folder


def signed_manifest(signer: RegistrySigner, **change: object) -> str:
    return signer.sign(KIND, a_manifest(**change).to_body())  # type: ignore[arg-type]
