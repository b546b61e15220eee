"""The signed manifest of a version, from what the database knows of it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fedpeft.dp.config import PrivacyConfig
from fedpeft.registry.manifest import (
    KIND,
    Guarantee,
    Manifest,
    ManifestFile,
    ManifestParticipant,
)
from fedpeft.registry.signing import RegistrySigner
from fedpeft_server.records import AdapterRecord, ExportedFile
from fedpeft_server.state import NotFoundError, State


@dataclass(frozen=True, kw_only=True)
class Manifests:
    """Writes and signs manifests.

    Attributes:
        state: The database of record.
        signer: Signs in the registry's name.
    """

    state: State
    signer: RegistrySigner

    def sign(
        self,
        adapter: AdapterRecord,
        files: Mapping[str, ExportedFile],
        *,
        method: str = "federated",
        void: bool = False,
        removal: str = "",
    ) -> str:
        """Returns the signed manifest of a version.

        Args:
            adapter: The version; its run need not be recorded yet where it has a parent.
            files: Of its export.
            method: What made it.
            void: The (epsilon, delta) of its parent hold no longer.
            removal: The removal request that made it.
        """
        manifest = Manifest(
            digest=adapter.digest,
            artifact=adapter.artifact,
            base_model=adapter.base_model,
            base_digest=adapter.base_digest,
            method=method,
            parents=() if adapter.parent is None else (adapter.parent,),
            run_id=adapter.run_id,
            round=adapter.round,
            participants=tuple(self._participants(adapter)),
            metrics=adapter.metrics,
            guarantee="void" if void else self._guarantee(adapter),
            removal=removal,
            files={
                name: ManifestFile(sha256=file.sha256, size_bytes=file.size_bytes)
                for name, file in files.items()
            },
            created_at=datetime.now(UTC),
        )
        return self.signer.sign(KIND, manifest.to_body())

    def deltas(self, adapter: AdapterRecord) -> dict[str, float]:
        """Returns participant → delta of its epsilon, where there is one."""
        return self._known_of(adapter)[1]

    def _participants(self, adapter: AdapterRecord) -> list[ManifestParticipant]:
        datasets, deltas = self._known_of(adapter)
        return [
            ManifestParticipant(
                client_id=client_id,
                dataset=datasets.get(client_id, ""),
                epsilon=adapter.epsilon.get(client_id),
                delta=deltas.get(client_id) if client_id in adapter.epsilon else None,
            )
            for client_id in adapter.participants
        ]

    def _known_of(self, adapter: AdapterRecord) -> tuple[dict[str, str], dict[str, float]]:
        """Client → fingerprint of its rows, and → delta, by the newest run that it was in."""
        datasets: dict[str, str] = {}
        deltas: dict[str, float] = {}
        for run_id in self._runs_of(adapter):
            try:
                plan, run = self.state.plan(run_id), self.state.run(run_id)
            except NotFoundError:  # of a removal that is just being published
                continue
            privacy = PrivacyConfig(**json.loads(run.config_json).get("privacy", {}))
            for participant in plan.participants if plan else ():
                datasets.setdefault(participant.client_id, participant.dataset)
                if privacy.enabled:
                    deltas.setdefault(participant.client_id, privacy.delta)
        return datasets, deltas

    def _runs_of(self, adapter: AdapterRecord) -> list[str]:
        """Ids of the runs that are in a version, newest first."""
        runs = [adapter.run_id]
        if adapter.parent is not None:
            older = self.state.lineage(adapter.parent)
            runs += [version.run_id for version in reversed(older)]
        return list(dict.fromkeys(runs))

    def _guarantee(self, adapter: AdapterRecord) -> Guarantee:
        """What became of the (epsilon, delta) of a version: void once, void for ever."""
        inherited = None
        if adapter.parent is not None:
            parent = self.state.adapter(adapter.parent)
            if parent.manifest_json is not None:
                body: Mapping[str, Any] = json.loads(parent.manifest_json)["body"]
                inherited = body["guarantee"]
        if inherited == "void":
            return "void"
        # Who is in it without an epsilon was trained on without privacy.
        is_private = bool(adapter.participants) and all(
            client_id in adapter.epsilon for client_id in adapter.participants
        )
        return "intact" if is_private else "none"
