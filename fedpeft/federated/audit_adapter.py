"""Membership inference on the adapter of a finished run. Reads the run's folder; writes nothing."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from fedpeft.adapters.config import AdapterConfig
from fedpeft.dp.config import PrivacyConfig
from fedpeft.errors import DataError
from fedpeft.federated.assembly import assemble
from fedpeft.federated.audit_membership import (
    Adapter,
    MembershipReport,
    audit_membership,
    num_scored_rows,
)
from fedpeft.federated.audit_run import Progress
from fedpeft.federated.config import FederationConfig
from fedpeft.federated.run_folder import RunFolder
from fedpeft.models.data_config import DataConfig
from fedpeft.models.model_config import ModelConfig


class AdapterAudit(BaseModel):
    """How well the adapter's losses tell training rows from held-out rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: str = Field(description="sha256 of the tensors that were attacked.")
    epsilon_upper: float | None = Field(
        description="The largest epsilon that the run charged a client; null if privacy was off."
    )
    delta: float = Field(description="The delta of every epsilon here.")
    confidence: float = Field(description="Of every interval, each for itself.")
    membership: tuple[MembershipReport, ...] = Field(
        description="The attack on the rows of all clients together, then on those of each."
    )


def audit_adapter(
    folder: Path,
    model: ModelConfig,
    data: DataConfig,
    adapter: AdapterConfig,
    federation: FederationConfig,
    privacy: PrivacyConfig,
    progress: Progress,
    *,
    base_digest: str,
    data_digest: str,
    confidence: float = 0.95,
) -> AdapterAudit:
    """Attacks the adapter that the run in `folder` ended with.

    Args:
        folder: Folder of a finished run.
        model: The run's model section, and so on.
        data: As the run had it.
        adapter: As the run had it.
        federation: As the run had it.
        privacy: As the run had it.
        progress: What watches.
        base_digest: Of the base model that the run began with.
        data_digest: Of the rows that it was trained on.
        confidence: Of every interval.

    Raises:
        InputError: If the run is not finished, or model or data are no longer what they were.
    """
    saved = RunFolder(folder).load_round()
    if saved is None or saved[0].round < federation.num_rounds:
        raise DataError(
            f"the run in {folder} is not finished; go on with: fedpeft simulate --resume {folder}"
        )
    finished, tensors = saved
    progress.stage_started("loading", 1)
    assembly = assemble(model, data, adapter, federation, privacy)
    progress.stage_advanced(1)
    for name, expected, found in (
        ("base model", base_digest, assembly.base_digest),
        ("data", data_digest, assembly.data_digest),
    ):
        if expected != found:
            raise DataError(
                f"the run in {folder} cannot be audited: its {name} is not what it was trained "
                f"with (expected digest {expected}, got {found})"
            )
    attacked = Adapter(
        model=assembly.model,
        initial=assembly.model.tensors(),
        final=tensors,
        max_tokens=model.max_tokens_per_batch,
    )
    progress.stage_started("losses", num_scored_rows(assembly.datasets, assembly.test))
    reports = audit_membership(
        attacked,
        assembly.datasets,
        assembly.test,
        delta=privacy.delta,
        confidence=confidence,
        advanced=progress.stage_advanced,
    )
    spent = finished.records[-1].epsilon
    return AdapterAudit(
        digest=finished.digest,
        epsilon_upper=max(spent.values()) if spent else None,
        delta=privacy.delta,
        confidence=confidence,
        membership=reports,
    )
