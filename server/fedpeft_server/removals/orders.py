"""The order of a removal's job: what is told to whoever runs it, beside the rows."""

import json
from typing import Any

from fedpeft.errors import InputError
from fedpeft.federated.terms import RunTerms
from fedpeft.registry.artifacts import ArtifactStore
from fedpeft.types import derive_seed
from fedpeft.unlearning.order import JobOrder
from fedpeft.unlearning.plan import RemovalPlan
from fedpeft_server.records import AdapterRecord, RemovalRecord
from fedpeft_server.removals.family import Family
from fedpeft_server.state import NotFoundError, State

EXPORT_NOTES = "fedpeft.json"
"""`fedpeft.federated.export.MANIFEST_FILE`, whose module needs torch."""


def job_order(state: State, artifacts: ArtifactStore, removal: RemovalRecord) -> JobOrder:
    """Returns the order; the same request always has the same one.

    Raises:
        InputError: If the classes that the version tells apart are not recorded.
        NotFoundError: If its run or version is gone.
    """
    named = named_version(state, removal)
    config: dict[str, Any] = json.loads(state.run(removal.run_id).config_json)
    settings = dict(removal.settings)
    precisions = settings.pop("precisions", None)
    content = {
        "request_id": removal.request_id,
        "run_config": config,
        "base_digest": named.base_digest,
        "labels": _labels(state, artifacts, named, config),
        "method": removal.method,
        "num_records": removal.num_records,
        "settings": settings,
        "seed": derive_seed(int(removal.request_id, 16), "removal"),
        "guarantee": RemovalPlan.from_body(removal.plan).guarantee,
    }
    if precisions is not None:
        content["precisions"] = precisions
    return JobOrder.model_validate(content)


def named_version(state: State, removal: RemovalRecord) -> AdapterRecord:
    """Returns the version that a request's job starts from.

    Raises:
        NotFoundError: If there is none.
    """
    for version in state.adapters(removal.run_id):
        if version.round == removal.round and version.digest == removal.adapter:
            return version
    raise NotFoundError(f"run {removal.run_id!r} has no adapter {removal.adapter!r}")


def _labels(
    state: State, artifacts: ArtifactStore, named: AdapterRecord, config: dict[str, Any]
) -> tuple[str, ...]:
    """The classes: what an export of the same line says, or what clients agreed to."""
    if config.get("model", {}).get("task") != "classification":
        return ()
    for version in Family(state.adapters()).line(named):
        exported = (version.export or {}).get(EXPORT_NOTES)
        if exported is not None:
            return tuple(json.loads(artifacts.get(exported.sha256))["labels"])
        plan = state.plan(version.run_id)
        if plan is not None:
            return RunTerms.from_json(plan.terms_json).labels
    raise InputError(
        f"the classes that adapter {named.digest[:12]} tells apart are not recorded: neither it "
        "nor one that it was made from was exported; name a version that was"
    )
