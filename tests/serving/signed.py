"""A registry on disk: exports that a server of a real authority signed, and what is wanted."""

import hashlib
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from fedpeft.errors import RemoteError, UnavailableError
from fedpeft.identity.credentials import Credentials
from fedpeft.identity.roles import Role
from fedpeft.registry.fingerprint import Fingerprint
from fedpeft.registry.manifest import FILE_NAME, KIND, Manifest, ManifestFile
from fedpeft.registry.signing import RegistrySigner
from fedpeft.registry.trust import RegistryTrust
from fedpeft.serving.adapter_files import read_export_folder
from tests.server.holders import Holders


class SignedRegistry:
    """Signs exports, keeps them, and answers followers as a server does."""

    def __init__(self, folder: Path, base_digest: str) -> None:
        self.folder, self.base_digest = folder, base_digest
        credentials = Credentials.in_folder(
            Holders(folder / "pki").issue("coordinator", Role.SERVER, hosts=("localhost",))
        )
        self.authority = credentials.authority
        self.trust = RegistryTrust.of_authority(credentials.authority)
        self.signer = RegistrySigner.open(
            folder / "pki", server_key=credentials.key, certificate=credentials.certificate
        )
        self.wanted: dict[str, str] = {}
        self.withdrawn: set[str] = set()
        self.is_down = False
        self.reports: list[tuple[str, str, str, str]] = []
        self.num_fetched = 0

    def add(self, export: Path, **change: str) -> str:
        """Signs an export where it lies; returns its digest."""
        files = {
            path.name: ManifestFile(
                sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
                size_bytes=path.stat().st_size,
            )
            for path in export.iterdir()
            if path.name != FILE_NAME
        }
        manifest = Manifest(
            digest=read_export_folder(export).digest,
            artifact="0" * 64,
            base_model="somewhere/else",
            base_digest=self.base_digest,
            method="federated",
            parents=(),
            run_id="run",
            round=1,
            participants=(),
            metrics={},
            guarantee="none",
            removal="",
            files=files,
            created_at=datetime.now(UTC),
        )
        manifest = replace(manifest, **change)  # type: ignore[arg-type]
        document = self.signer.sign(KIND, manifest.to_body())
        (export / FILE_NAME).write_text(document, encoding="utf-8")
        shutil.copytree(export, self.folder / "versions" / manifest.digest, dirs_exist_ok=True)
        return manifest.digest

    def path(self, digest: str) -> Path:
        return self.folder / "versions" / digest

    # --- what followers call

    def follow(self, name: str, *, adapter: str, fingerprint_json: str, problem: str) -> str:
        self._check()
        self.reports.append((name, adapter, fingerprint_json, problem))
        if name not in self.wanted:
            raise RemoteError("no-such-alias", f"there is no alias {name}")
        return self.wanted[name]

    def is_withdrawn(self, digest: str) -> bool:
        self._check()
        return digest in self.withdrawn

    def fetch(self, digest: str, folder: Path) -> None:
        self._check()
        self.num_fetched += 1
        if not self.path(digest).is_dir():
            raise RemoteError("no-such-adapter", f"there is no adapter {digest}")
        shutil.copytree(self.path(digest), folder)

    def _check(self) -> None:
        if self.is_down:
            raise UnavailableError("the server cannot be reached")

    def reported(self) -> tuple[str, Fingerprint | None, str]:
        """What was said last: digest, fingerprint, problem."""
        _, adapter, fingerprint, problem = self.reports[-1]
        return adapter, Fingerprint.from_json(fingerprint) if fingerprint else None, problem
