"""A run of remote clients, from its configuration to an exported adapter, top to bottom.

Everything that is finished is in the database before the next thing begins, so that a run that was
stopped or killed goes on with the same round: `execute` is the way to start and the way to resume.
"""

from datetime import UTC, datetime

from fedpeft.errors import DataError
from fedpeft.federated.terms import RunTerms
from fedpeft.models.model_config import ModelConfig
from fedpeft_server import events
from fedpeft_server.agreement import agree
from fedpeft_server.records import AdapterRecord, ExportedFile, RunStatus
from fedpeft_server.removals.family import Family
from fedpeft_server.round import Adapter, Round
from fedpeft_server.run_context import UNDER_WAY, RunContext
from fedpeft_server.run_math import Start
from fedpeft_server.state import State


def execute(context: RunContext) -> None:
    """Takes a run from wherever it is to its end.

    Raises:
        StoppedError: If it was asked to stop.
        FedpeftError: If it cannot go on; it can be resumed when the cause is gone.
    """
    state, run_id = context.state, context.run_id
    _set_status(context, RunStatus.PREPARING)
    start: Start = context.compute("start", run_id)
    adapter = _newest(context, start)
    plan = agree(context, start.terms)
    _check_terms(plan.terms_json, start.terms)
    _set_status(context, RunStatus.RUNNING)
    while adapter.record.round < start.terms.federation.num_rounds:
        adapter = Round(context, start, plan, adapter.record.round + 1, adapter).run()
    files, metrics = context.compute("export", adapter.blob, adapter.record.digest)
    exported = {
        name: ExportedFile(sha256=context.artifacts.put(content), size_bytes=len(content))
        for name, content in files.items()
    }
    state.set_export(
        adapter.record.digest,
        exported,
        run_id=run_id,
        manifest_json=context.manifests.sign(adapter.record, exported),
    )
    context.tell(events.EXPORTED, adapter=adapter.record.digest, metrics=metrics)
    _set_status(context, RunStatus.FINISHED)


def _newest(context: RunContext, start: Start) -> Adapter:
    """Returns the adapter that the open round starts from."""
    stored = context.state.newest_adapter(context.run_id)
    if stored is not None:
        # Refused before anybody is charged for a round that could not be recorded.
        if stored.status == "withdrawn":
            raise DataError(
                f"adapter {stored.digest[:12]}, which the run goes on from, was withdrawn by "
                f"{stored.withdrawn_by}; submit a new run"
            )
        return Adapter(record=stored, blob=context.artifacts.get(stored.artifact))
    named = context.state.run(context.run_id).start_from
    if named is not None:
        return _start_from(context, start, named)
    model: ModelConfig = start.terms.model
    first = AdapterRecord(
        digest=start.digest,
        run_id=context.run_id,
        round=0,
        parent=None,
        base_model=model.name,
        base_digest=start.terms.base_digest,
        artifact=context.artifacts.put(start.adapter),
        participants=(),
        epsilon={},
        metrics=start.metrics,
        created_at=datetime.now(UTC),
        export=None,
    )
    context.state.start_adapter(first)
    return Adapter(record=first, blob=start.adapter)


def _start_from(context: RunContext, start: Start, digest: str) -> Adapter:
    """Records the version of another run as round 0."""
    parent = context.state.adapter(digest)
    if parent.status == "withdrawn":
        raise DataError(f"adapter {digest[:12]} was withdrawn; name another version to go on from")
    blob = context.artifacts.get(parent.artifact)
    if parent.base_digest != start.terms.base_digest:
        raise DataError(
            f"adapter {digest[:12]} is on the base model {parent.base_digest[:12]}, and the run is "
            f"on {start.terms.base_digest[:12]}; name a version on the same base model"
        )
    if context.compute("fits", blob) is not True:
        raise DataError(
            f"adapter {digest[:12]} has other tensors than the run's; name a version with the same "
            "rank and modules"
        )
    labels = _labels(context.state, parent)
    if labels not in (None, start.terms.labels):
        raise DataError(
            f"adapter {digest[:12]} tells other classes apart than the run's held-out rows have: "
            f"expected {', '.join(start.terms.labels)}, got {', '.join(labels or ())}; name a "
            "version with the same labels"
        )
    first = AdapterRecord(
        digest=parent.digest,
        run_id=context.run_id,
        round=0,
        parent=parent.digest,
        base_model=parent.base_model,
        base_digest=parent.base_digest,
        artifact=parent.artifact,
        participants=parent.participants,
        epsilon=parent.epsilon,
        metrics=parent.metrics,
        created_at=datetime.now(UTC),
        export=None,
    )
    context.state.start_adapter(first)
    return Adapter(record=first, blob=blob)


def _labels(state: State, version: AdapterRecord) -> tuple[str, ...] | None:
    """The classes of a version, in order; None where no client here was told."""
    for older in Family(state.adapters()).line(version):
        plan = state.plan(older.run_id)
        if plan is not None:
            return RunTerms.from_json(plan.terms_json).labels
    return None


def _check_terms(agreed: str, now: RunTerms) -> None:
    """What clients agreed to must be what the run still is: base model and labels included."""
    if agreed != now.to_json():
        raise DataError(
            "the run cannot go on: its base model or held-out labels are not those that its "
            "clients agreed to; put them back"
        )


def _set_status(context: RunContext, status: RunStatus) -> None:
    context.state.set_run_status(context.run_id, status, expected=UNDER_WAY)
    context.tell(events.STATUS, status=status.value, reason="")
