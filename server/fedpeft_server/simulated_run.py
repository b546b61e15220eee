"""A run without clients: the coordinator holds the rows and simulates everybody on Ray.

It is `fedpeft.simulate` in a process of its own, which keeps its own folder and ledger; every round
that it finishes is published to the database, so that it is watched and downloaded like any other.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from fedpeft.config import validate_config
from fedpeft.errors import WorkerLostError
from fedpeft.federated.observer import Observer
from fedpeft.federated.records import RoundReport
from fedpeft.registry.artifacts import ArtifactStore
from fedpeft.warm_worker import WarmWorker
from fedpeft.wire.blobs import to_blob
from fedpeft_server import events
from fedpeft_server.manifests import Manifests
from fedpeft_server.records import AdapterRecord, ExportedFile, RoundRecord, RunStatus
from fedpeft_server.run_context import UNDER_WAY
from fedpeft_server.state import State

_MOST_LOSSES = 3  # without a round between them

Tell = Callable[..., None]
"""`run_context.RunContext.tell`, of the run."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """A round that the simulation finished, and the adapter after it; round 0 is the start."""

    round: int
    digest: str
    blob: bytes
    metrics: Mapping[str, float]
    base_model: str
    base_digest: str
    report: RoundReport | None


class Simulator:
    """The object that a `WarmWorker` holds for one simulated run."""

    def __init__(self, config: Mapping[str, Any], folder: Path, num_workers: int) -> None:
        """Takes the run's configuration, its folder, and how many Ray actors train."""
        self._config, self._folder, self._num_workers = config, folder, num_workers

    def run(
        self, progress: Callable[[Published], None]
    ) -> tuple[dict[str, bytes], dict[str, float]]:
        """Simulates, or goes on where the folder is, and returns the export and its metrics.

        Raises:
            FedpeftError: Whatever `simulate.simulate` raises.
        """
        from fedpeft.simulate import ADAPTER_FOLDER, resume, simulate
        from fedpeft.workers import WorkersConfig

        publisher = _Publisher(self._folder, progress)
        workers = WorkersConfig(num_workers=self._num_workers)
        if (self._folder / "run.json").exists():
            report = resume(self._folder, publisher, workers=workers)
        else:
            config = validate_config(self._config, "the run")
            report = simulate(config, self._folder, publisher, workers=workers)
        publisher.publish()
        files = sorted((self._folder / ADAPTER_FOLDER).iterdir())
        return {f.name: f.read_bytes() for f in files}, report.reload.metrics


class _Publisher(Observer):
    """Sends each finished round once, read from where the simulation has just made it durable."""

    def __init__(self, folder: Path, send: Callable[[Published], None]) -> None:
        self._folder, self._send = folder, send
        self._last = -1

    def round_started(self, round: int, cohort: Any) -> None:  # noqa: A002
        self.publish()

    def publish(self) -> None:
        from fedpeft.federated.run_folder import RunFolder  # torch, in this process alone

        saved = RunFolder(self._folder).load_round()
        assert saved is not None
        progress, tensors = saved
        if progress.round <= self._last:
            return
        self._last = progress.round
        run = json.loads((self._folder / "run.json").read_text(encoding="utf-8"))
        report = progress.records[-1] if progress.records else None
        self._send(
            Published(
                round=progress.round,
                digest=progress.digest,
                blob=to_blob(tensors),
                metrics=(report.metrics or {}) if report else progress.initial_metrics,
                base_model=run["config"]["model"]["name"],
                base_digest=run["base_digest"],
                report=report,
            )
        )


def execute(
    run_id: str,
    state: State,
    artifacts: ArtifactStore,
    worker: WarmWorker,
    manifests: Manifests,
    tell: Tell,
) -> None:
    """Takes a simulated run from wherever it is to its end.

    Args:
        run_id: The run.
        state: The database of record.
        artifacts: Where blobs are kept.
        worker: Holds a `Simulator`.
        manifests: Signs what is exported.
        tell: Records an event of the run.

    Raises:
        FedpeftError: If it cannot go on; it can be resumed when the cause is gone.
    """
    state.set_run_status(run_id, RunStatus.RUNNING, expected=UNDER_WAY)
    tell(events.STATUS, status=RunStatus.RUNNING.value, reason="")
    files, metrics = _simulated(worker, partial(_store, run_id, state, artifacts, tell))
    newest = state.newest_adapter(run_id)
    assert newest is not None
    exported = {
        name: ExportedFile(sha256=artifacts.put(content), size_bytes=len(content))
        for name, content in files.items()
    }
    state.set_export(
        newest.digest, exported, run_id=run_id, manifest_json=manifests.sign(newest, exported)
    )
    tell(events.EXPORTED, adapter=newest.digest, metrics=metrics)
    state.set_run_status(run_id, RunStatus.FINISHED, expected=UNDER_WAY)
    tell(events.STATUS, status=RunStatus.FINISHED.value, reason="")


def _simulated(
    worker: WarmWorker, store: Callable[[Published], None]
) -> tuple[dict[str, bytes], dict[str, float]]:
    """Runs the simulation, which goes on in its folder where its process was lost."""
    num_losses = 0

    def stored(published: Published) -> None:
        nonlocal num_losses
        store(published)
        num_losses = 0

    while True:
        try:
            result: tuple[dict[str, bytes], dict[str, float]] = worker.call("run", progress=stored)
        except WorkerLostError:
            num_losses += 1
            if num_losses == _MOST_LOSSES:
                raise
        else:
            return result


def _store(
    run_id: str, state: State, artifacts: ArtifactStore, tell: Tell, published: Published
) -> None:
    parent = state.newest_adapter(run_id)
    if parent is not None and parent.round >= published.round:
        return
    now, report = datetime.now(UTC), published.report
    cohort = tuple(report.cohort) if report else ()
    adapter = AdapterRecord(
        digest=published.digest,
        run_id=run_id,
        round=published.round,
        parent=parent.digest if parent else None,
        base_model=published.base_model,
        base_digest=published.base_digest,
        artifact=artifacts.put(published.blob),
        participants=tuple(sorted({*(parent.participants if parent else ()), *cohort})),
        epsilon=dict(report.epsilon) if report else {},
        metrics=published.metrics,
        created_at=now,
        export=None,
    )
    if report is None:
        state.start_adapter(adapter)
        return
    state.finish_round(
        run_id,
        RoundRecord(
            round=published.round,
            cohort=cohort,
            missing={},
            seconds=report.seconds,
            metrics=published.metrics,
            diagnostics=report.diagnostics,
            update_norms=report.update_norms,
            adapter=published.digest,
            uplink_bytes=report.uplink_bytes,
            downlink_bytes=report.downlink_bytes,
            finished_at=now,
        ),
        adapter,
    )
    tell(
        events.ROUND_FINISHED,
        round_number=published.round,
        cohort=list(cohort),
        missing={},
        metrics=dict(published.metrics),
        max_epsilon=max(report.epsilon.values(), default=None),
        adapter=published.digest,
        seconds=report.seconds,
    )
