"""The removal engine, put together from what a server has."""

from functools import partial
from pathlib import Path

from fedpeft.registry.artifacts import ArtifactStore
from fedpeft.registry.signing import RegistrySigner
from fedpeft.warm_worker import WarmWorker
from fedpeft_server.config import RemovalsConfig
from fedpeft_server.manifests import Manifests
from fedpeft_server.ports import RunEngine
from fedpeft_server.removals.driver import RayConfig, RayDriver
from fedpeft_server.removals.engine import RemovalJobs
from fedpeft_server.removals.job import Perform, perform
from fedpeft_server.removals.publish import Publisher
from fedpeft_server.removals.retraining import Retraining
from fedpeft_server.removals.standing import Watch
from fedpeft_server.state import State


def removal_jobs(
    config: RemovalsConfig,
    *,
    state: State,
    artifacts: ArtifactStore,
    manifests: Manifests,
    signer: RegistrySigner,
    engine: RunEngine,
    folder: Path,
    watch: Watch,
    work: Perform = perform,
) -> RemovalJobs:
    """Returns the engine; nothing is started.

    Args:
        config: Of jobs.
        state: The database of record.
        artifacts: Where blobs are kept.
        manifests: Signs manifests.
        signer: Signs receipts.
        engine: Of runs.
        folder: For files of runs.
        watch: Is told of every event.
        work: Does a job; a top-level function.
    """
    ray = RayConfig(
        address=config.ray,
        num_cpus_per_job=config.num_cpus_per_job,
        num_gpus_per_job=config.num_gpus_per_job,
        max_jobs=config.max_jobs,
    )
    return RemovalJobs(
        state,
        artifacts,
        Publisher(state=state, artifacts=artifacts, manifests=manifests, signer=signer),
        Retraining(state=state, artifacts=artifacts, folder=folder, start_run=engine.start),
        make_driver=partial(WarmWorker, partial(RayDriver, ray, work), name="removal jobs on Ray"),
        stop_run=engine.stop,
        watch=watch,
        max_jobs=config.max_jobs,
        max_attempts=config.max_attempts,
        replica_timeout_s=config.replica_timeout_s,
    )
