"""From a verified result to what is published: records, manifest and receipt, nothing written."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fedpeft.registry.artifacts import ArtifactStore
from fedpeft.registry.signing import RegistrySigner
from fedpeft.unlearning.order import JobResult
from fedpeft.unlearning.plan import RemovalPlan
from fedpeft.unlearning.receipt import (
    KIND,
    Receipt,
    Request,
    make_receipt,
    receipt_digest,
)
from fedpeft_server.manifests import Manifests
from fedpeft_server.records import (
    AdapterRecord,
    ExportedFile,
    RemovalRecord,
    RunRecord,
    RunStatus,
)
from fedpeft_server.removals.family import Family
from fedpeft_server.removals.orders import named_version
from fedpeft_server.state import State
from fedpeft_server.state.publications import Publication


@dataclass(frozen=True, kw_only=True)
class Publisher:
    """Puts publications together.

    Attributes:
        state: The database of record; it is only read.
        artifacts: Where the result is.
        manifests: Signs manifests.
        signer: Signs receipts.
    """

    state: State
    artifacts: ArtifactStore
    manifests: Manifests
    signer: RegistrySigner

    def of_job(self, removal: RemovalRecord) -> Publication:
        """Returns what a request publishes whose job made a successor.

        Args:
            removal: With a stored result that passed the gate.

        Raises:
            NotFoundError: If the version that it started from is gone.
        """
        assert removal.result is not None
        assert removal.result_artifact is not None
        result: Mapping[str, Any] = removal.result
        job = JobResult.model_validate(result["job"])
        named = named_version(self.state, removal)
        run = self.state.run(named.run_id)
        plan = RemovalPlan.from_body(removal.plan)
        now = datetime.now(UTC)
        successor = AdapterRecord(
            digest=job.digest,
            run_id=removal.request_id,
            round=1,
            parent=named.digest,
            base_model=named.base_model,
            base_digest=named.base_digest,
            artifact=removal.result_artifact,
            participants=named.participants,
            epsilon=_epsilon(named, removal, plan, job),
            metrics={},
            created_at=now,
            export={name: ExportedFile(**file) for name, file in result["files"].items()},
        )
        return self._publication(
            removal,
            plan,
            named,
            successor,
            run=RunRecord(
                run_id=removal.request_id,
                name=f"removal by {removal.method}",
                config_json=result["run_config"],
                clients="removal",
                status=RunStatus.FINISHED,
                num_rounds=1,
                submitted_at=now,
                submitted_by=removal.requested_by,
                held_out=run.held_out,
                held_out_suffix=run.held_out_suffix,
            ),
        )

    def of_rounds(self, removal: RemovalRecord, successor: AdapterRecord) -> Publication:
        """Returns what a request publishes whose successor rounds have made: it is recorded."""
        plan = RemovalPlan.from_body(removal.plan)
        named = named_version(self.state, removal)
        return self._publication(removal, plan, named, successor, run=None)

    def _publication(
        self,
        removal: RemovalRecord,
        plan: RemovalPlan,
        named: AdapterRecord,
        successor: AdapterRecord,
        *,
        run: RunRecord | None,
    ) -> Publication:
        touched = Family(self.state.adapters()).touched(named, removal.client_id)
        affected = tuple(
            dict.fromkeys(
                version.digest
                for version in touched
                if version.status == "published" and version.run_id != successor.run_id
            )
        )
        if run is None:
            assert successor.manifest_json is not None
            manifest = successor.manifest_json
        else:
            assert successor.export is not None
            manifest = self.manifests.sign(
                successor,
                successor.export,
                method=removal.method,
                void=plan.guarantee == "void",
                removal=removal.request_id,
            )
        receipt = self.signer.sign(
            KIND, self._receipt(removal, plan, affected, successor).to_body()
        )
        return Publication(
            request_id=removal.request_id,
            successor=successor,
            run=run,
            manifest_json=manifest,
            affected=affected,
            receipt_json=receipt,
            receipt_digest=receipt_digest(receipt),
        )

    def _receipt(
        self,
        removal: RemovalRecord,
        plan: RemovalPlan,
        affected: tuple[str, ...],
        successor: AdapterRecord,
    ) -> Receipt:
        stored: Mapping[str, Any] | None = removal.result
        deltas = self.manifests.deltas(successor)
        return make_receipt(
            Request(
                request_id=removal.request_id,
                client_id=removal.client_id,
                requested_by=removal.requested_by,
                requested_at=removal.created_at,
                num_records=removal.num_records,
                records_digest=removal.records_digest,
            ),
            plan,
            affected=affected,
            aliases=[a.name for a in self.state.aliases() if a.digest in affected],
            successor=successor.digest,
            result=None if stored is None else JobResult.model_validate(stored["job"]),
            measured_by="nobody" if stored is None else stored["measured_by"],
            epsilon={
                client_id: (epsilon, deltas[client_id])
                for client_id, epsilon in successor.epsilon.items()
                if client_id in deltas
            },
            audit_head=str(self.state.audit_head()),
            created_at=datetime.now(UTC),
        )


def _epsilon(
    named: AdapterRecord, removal: RemovalRecord, plan: RemovalPlan, job: JobResult
) -> dict[str, float]:
    """Participant → epsilon of the successor; that of the records' owner may be given up."""
    epsilon = dict(named.epsilon)
    if plan.guarantee == "void":
        epsilon.pop(removal.client_id, None)
    if job.privacy is not None:
        # What the owner's own ledger says after the job; never less than before.
        before = epsilon.get(removal.client_id, 0.0)
        epsilon[removal.client_id] = max(job.privacy.epsilon_spent, before)
    return epsilon
