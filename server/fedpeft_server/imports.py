"""Versions that were made elsewhere: checked in a process of their own, then recorded whole."""

import json
import re
import secrets
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from fedpeft.errors import AdapterError, VerificationError
from fedpeft.registry.artifacts import ArtifactStore
from fedpeft.registry.manifest import FILE_NAME, KIND, Manifest
from fedpeft.registry.trust import RegistryTrust
from fedpeft.warm_worker import WarmWorker
from fedpeft_server.manifests import Manifests
from fedpeft_server.records import AdapterRecord, ExportedFile, RunRecord, RunStatus
from fedpeft_server.state import State

_READ_S = 600.0
_MOST_FILES = 16
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class ExportReader:
    """The object that a `WarmWorker` holds: the coordinator itself never loads tensors."""

    def read(self, files: Mapping[str, bytes]) -> tuple[str, bytes, dict[str, Any], dict[str, Any]]:
        """Returns digest, tensors, `[adapter]` and `fedpeft.json` of an export."""
        from fedpeft.federated.exported import read_exported

        read = read_exported(files)
        return read.digest, read.blob, read.adapter.model_dump(mode="json"), dict(read.about)


class Imports:
    """Takes versions in."""

    def __init__(
        self,
        state: State,
        artifacts: ArtifactStore,
        manifests: Manifests,
        trust: RegistryTrust,
        *,
        make_worker: Callable[..., WarmWorker] = WarmWorker,
    ) -> None:
        """Takes where versions go, who signs them, and whose manifests are believed."""
        self._state, self._artifacts = state, artifacts
        self._manifests, self._trust = manifests, trust
        self._make_worker = make_worker

    def take(
        self,
        files: Mapping[str, bytes],
        *,
        name: str,
        base_model: str,
        base_digest: str,
        manifest_json: str,
        idempotency_key: str,
        by: str,
    ) -> AdapterRecord:
        """Records a version in PEFT format, as a run of its own that is finished.

        Args:
            files: Plain name → content.
            name: Of the run.
            base_model: As the operator calls it.
            base_digest: Of its tensors.
            manifest_json: That came beside the files; empty where there is none.
            idempotency_key: The same one again gives the same version.
            by: Who.

        Raises:
            AdapterError: If the files are no adapter.
            WrongStateError: If its tensors are recorded already.
            VerificationError: If the manifest is not believed, or is of something else.
        """
        if not files or len(files) > _MOST_FILES or FILE_NAME in files:
            raise AdapterError(f"an import has 1 to {_MOST_FILES} files, its manifest apart")
        for file in files:
            if _FILE_NAME.fullmatch(file) is None:
                raise AdapterError(f"a file of an import has a plain name, got {file[:80]!r}")
        if _DIGEST.fullmatch(base_digest) is None:
            raise AdapterError(
                f"a base model's digest is 64 hex digits, got {base_digest[:80]!r}; "
                "`fedpeft model digest` tells it"
            )
        manifest = self._believed(manifest_json, files, base_digest) if manifest_json else None
        worker = self._make_worker(ExportReader, name="reader of an imported adapter")
        try:
            digest, blob, adapter, about = worker.call("read", dict(files), timeout_s=_READ_S)
        finally:
            worker.close()
        if manifest is not None and manifest.digest != digest:
            raise VerificationError(
                f"the manifest is of adapter {manifest.digest}, the files are of {digest}"
            )
        now = datetime.now(UTC)
        run = RunRecord(
            run_id=secrets.token_hex(8),
            name=name,
            config_json=json.dumps({"model": _model(about, base_model), "adapter": adapter}),
            clients="import",
            status=RunStatus.FINISHED,
            num_rounds=1,
            submitted_at=now,
            submitted_by=by,
        )
        known = manifest.participants if manifest else ()
        record = AdapterRecord(
            digest=digest,
            run_id=run.run_id,
            round=1,
            parent=None,
            base_model=base_model,
            base_digest=base_digest,
            artifact=self._artifacts.put(blob),
            participants=tuple(p.client_id for p in known),
            epsilon={p.client_id: p.epsilon for p in known if p.epsilon is not None},
            metrics=manifest.metrics if manifest else {},
            created_at=now,
            export={
                file: ExportedFile(sha256=self._artifacts.put(content), size_bytes=len(content))
                for file, content in files.items()
            },
        )
        assert record.export is not None
        signed = self._manifests.sign(
            record,
            record.export,
            method="imported",
            void=manifest is not None and manifest.guarantee == "void",
        )
        return self._state.add_finished(run, record, signed, idempotency_key, by)

    def _believed(self, document: str, files: Mapping[str, bytes], base_digest: str) -> Manifest:
        manifest = Manifest.from_body(self._trust.verify(KIND, document))
        manifest.check_files(files)
        if manifest.base_digest != base_digest:
            raise VerificationError(
                f"the manifest is of an adapter on the base model {manifest.base_digest}, not on "
                f"{base_digest}"
            )
        return manifest


def _model(about: Mapping[str, Any], base_model: str) -> dict[str, Any]:
    return {"name": base_model, "task": about.get("task"), "max_length": about.get("max_length")}
