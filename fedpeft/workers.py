"""Cohorts trained by Ray actors: on this machine's cores, or on a cluster's.

Every actor loads the base model itself. On a CPU its weights stay in the safetensors file that is
mapped into memory, so that all actors of a machine share one copy. What they train and how it is
cut into jobs does not depend on their number, so neither do the results; see `federated.trainer`.
"""

import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from fedpeft.config import RunConfig
from fedpeft.errors import ConfigError, ModelError
from fedpeft.federated.adapted_model import AdaptedModel, device_of
from fedpeft.federated.aggregators import AGGREGATORS
from fedpeft.federated.assembly import Assembly, adapted_model
from fedpeft.federated.local_training import LocalResult
from fedpeft.federated.observer import Observer
from fedpeft.federated.plan import ClientPlan
from fedpeft.federated.trainer import Job, LocalTrainer
from fedpeft.models.base_model import load_base_model
from fedpeft.models.dataset import Dataset
from fedpeft.types import tensor_digest

if TYPE_CHECKING:
    import ray

_MOST_RESTARTS = 3
_PATIENCE_S = 60.0


@dataclass(frozen=True, kw_only=True)
class WorkersConfig:
    """How many actors, and where.

    Attributes:
        num_workers: Actors; None: as many as the cluster has room for.
        num_threads: CPU threads of each.
        address: A running cluster's, as `ray.init` takes it; None: Ray is started here.
    """

    num_workers: int | None
    num_threads: int = 1
    address: str | None = None

    def __post_init__(self) -> None:
        """Refuses counts below one."""
        if self.num_workers is None and self.address is None:
            raise ConfigError("say how many workers to start on this machine")
        num_workers = 1 if self.num_workers is None else self.num_workers
        if min(num_workers, self.num_threads) < 1:
            raise ConfigError(
                f"expected at least one worker of at least one thread, got {self.num_workers} of "
                f"{self.num_threads}"
            )


class Worker:
    """What runs in an actor."""

    def __init__(self, config: RunConfig, num_threads: int) -> None:
        """Loads nothing yet: an error here would be taken for the loss of the actor."""
        self._config = config
        self._num_threads = num_threads
        self._base: nn.Module | None = None
        self._loaded: AdaptedModel | None = None

    def load_base(self) -> None:
        """Loads the base model, the first time.

        Raises:
            ModelError: If it cannot be loaded here.
        """
        import torch

        if self._base is None:
            torch.set_num_threads(self._num_threads)
            self._base = load_base_model(self._config.model)

    def load(self, num_classes: int, base_digest: str) -> None:
        """Makes the model ready to train, the first time.

        Raises:
            ModelError: If it cannot be loaded here, or is another one than where the run started.
        """
        if self._loaded is not None:
            return
        self.load_base()
        assert self._base is not None
        config = self._config
        found = tensor_digest(self._base.state_dict())
        if found != base_digest:
            raise ModelError(
                f"{config.model.name} on {platform.node()} is not the model that the run started "
                f"with: expected digest {base_digest}, got {found}"
            )
        self._loaded = adapted_model(
            self._base, config.model, config.adapter, config.federation, num_classes=num_classes
        )
        self._loaded.set_trainable(AGGREGATORS[config.federation.aggregator].trained_factors)

    def train(
        self,
        tensors: Mapping[str, Tensor],
        job: Job,
        plans: Mapping[str, ClientPlan],
        *datasets: Dataset,
    ) -> dict[str, LocalResult]:
        """Trains one job; `datasets` are those of the clients that train, in the job's order."""
        assert self._loaded is not None
        trainer = LocalTrainer(
            self._loaded,
            dict(zip(job.reservations, datasets, strict=True)),
            plans,
            self._config.federation,
            max_tokens=self._config.model.max_tokens_per_batch,
        )
        return trainer.run(tensors, job, Observer())


class RayWorkers:
    """The actors; they load the base model while the run is still being put together.

    Attributes:
        actors: Their handles.
    """

    def __init__(self, config: RunConfig, workers: WorkersConfig) -> None:
        """Starts the actors; Ray must have been started."""
        import ray

        on_gpu = device_of(config.model.device).type == "cuda"
        # What an actor did when it was lost is paid for again; Ray must not repeat it by itself.
        kind: Any = ray.remote(
            num_cpus=workers.num_threads,
            num_gpus=1 if on_gpu else 0,
            max_restarts=-1,
            max_task_retries=0,
        )(Worker)
        count = workers.num_workers or _room(workers.num_threads, on_gpu)
        self.actors = [kind.remote(config, workers.num_threads) for _ in range(count)]
        for actor in self.actors:
            actor.load_base.remote()


def _room(num_threads: int, on_gpu: bool) -> int:
    import ray

    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    room = int(resources.get("CPU", 0) // num_threads)
    return max(1, min(room, int(resources.get("GPU", 0))) if on_gpu else room)


class RayTrainer:
    """Trains in Ray actors, as many jobs at a time as there are actors."""

    def __init__(self, workers: RayWorkers, assembly: Assembly, num_steps: int) -> None:
        """Gives the actors what the run was put together from."""
        import ray

        self._workers = workers.actors
        self._num_steps = num_steps
        self._plans = assembly.plan.clients
        self._model = (len(assembly.labels), assembly.base_digest)
        self._datasets = {name: ray.put(rows) for name, rows in assembly.datasets.items()}

    def train(
        self, tensors: Mapping[str, Tensor], jobs: Iterator[Job], observer: Observer
    ) -> Iterator[tuple[Job, Mapping[str, LocalResult] | None]]:
        """See `federated.trainer.Trainer.train`."""
        import ray

        sent = ray.put(dict(tensors))
        loading = {self._load(worker): worker for worker in self._workers}
        idle: list[Any] = []
        running: dict[ray.ObjectRef[Any], tuple[Job, Any]] = {}
        more = True
        while more or running:
            while more and idle:
                job = next(jobs, None)
                if job is None:
                    more = False
                    break
                observer.client_started(job.round, job.label, self._num_steps)
                worker = idle.pop()
                running[self._start(worker, sent, job)] = (job, worker)
            if not running and not more:
                break
            finished, _ = ray.wait([*running, *loading], timeout=_PATIENCE_S)
            if not finished:
                if not running:
                    observer.note("still waiting for a worker: has Ray room for one?")
                continue
            [done] = finished
            if done in loading:
                _finish_loading(done)
                idle.append(loading.pop(done))
                continue
            job, worker = running.pop(done)
            try:
                results = _get(done)
            except ray.exceptions.RayError:  # also where Ray ended it for want of memory
                loading[self._load(worker)] = worker
                yield job, None
                more = True  # it has been put back
                continue
            idle.append(worker)
            for step in range(1, self._num_steps + 1):
                observer.step_finished(job.label, step)
            yield job, results

    def _load(self, worker: Any) -> Any:
        """Asks a worker that is new, or was lost and comes back, to be ready for a job.

        Nobody pays for a job before there is a worker for it.
        """
        return worker.load.options(max_task_retries=_MOST_RESTARTS).remote(*self._model)

    def _start(self, worker: Any, tensors: "ray.ObjectRef[Any]", job: Job) -> Any:
        plans = {client_id: self._plans[client_id] for client_id in job.reservations}
        datasets = [self._datasets[client_id] for client_id in job.reservations]
        return worker.train.remote(tensors, job, plans, *datasets)


def _finish_loading(loaded: Any) -> None:
    import ray

    try:
        _get(loaded)
    except ray.exceptions.RayError as error:
        raise ConfigError(
            f"a worker was lost {_MOST_RESTARTS + 1} times while it loaded the model; it may be "
            f"out of memory: use fewer ({' '.join(str(error).split())[:200]})"
        ) from error


def _get(done: Any) -> Any:
    import ray

    try:
        return ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None


@contextmanager
def started_ray(workers: WorkersConfig) -> Iterator[None]:
    """Starts Ray on this machine, or connects to a cluster; leaves it at the end.

    Raises:
        ConfigError: If Ray is not installed, or the cluster cannot be reached.
    """
    # Before the import: Ray reads it then.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "workers need Ray, which is not installed; run: pip install 'fedpeft[server]'"
        ) from error
    try:
        if workers.address is None:
            assert workers.num_workers is not None
            ray.init(
                address="local",  # whatever RAY_ADDRESS says
                num_cpus=workers.num_workers * workers.num_threads,
                include_dashboard=False,
                log_to_driver=False,
                configure_logging=False,
            )
        else:
            ray.init(address=workers.address, log_to_driver=False, configure_logging=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = f"reach a cluster at {workers.address}" if workers.address else "be started here"
        raise ConfigError(f"Ray cannot {where}: {' '.join(str(error).split())[:300]}") from error
    try:
        yield
    finally:
        ray.shutdown()
