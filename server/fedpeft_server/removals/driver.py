"""The process that owns Ray: removal jobs are its tasks, each in a Ray worker of its own.

It is the object of a `WarmWorker`. The coordinator calls it briefly and often; when it is killed,
or Ray's head or raylet is, the call is lost, the coordinator begins its jobs again with a new one,
and the Ray that this one started ends with it.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fedpeft.errors import DataError, FedpeftError, WorkerLostError
from fedpeft_server.removals.job import JobNews, JobOutcome, JobSpec, Perform

_OBJECT_STORE_BYTES = 256 * 2**20
_LOOK_S = 0.2


@dataclass(frozen=True, kw_only=True)
class RayConfig:
    """Where jobs run, and what each of them takes.

    Attributes:
        address: Of a running cluster, as `ray.init` takes it; empty: Ray is started here.
        num_cpus_per_job: Processors that a job is given, and threads that it uses.
        num_gpus_per_job: GPUs, or a share of one.
        max_jobs: At a time.
    """

    address: str
    num_cpus_per_job: int
    num_gpus_per_job: float
    max_jobs: int


class RayDriver:
    """Runs jobs as Ray tasks. Calls come one at a time."""

    def __init__(self, config: RayConfig, perform: Perform) -> None:
        """Connects to Ray, or starts it.

        Raises:
            UnavailableError: If the cluster cannot be reached.
        """
        self._config, self._perform = config, perform
        _start(config)
        import ray

        self._running: dict[str, ray.ObjectRef[Any]] = {}
        self._told: Any = ray.remote(num_cpus=0)(_Told).remote()
        task: Any = ray.remote(
            num_cpus=config.num_cpus_per_job,
            num_gpus=config.num_gpus_per_job,
            # A job that was lost begins again by the coordinator, which counts.
            max_retries=0,
            max_calls=1,
        )(_work)
        self._task = task

    def pids(self) -> dict[str, int]:
        """Returns the process of each job that has begun."""
        import ray

        found: dict[str, int] = ray.get(self._told.pids.remote())
        return found

    def submit(self, spec: JobSpec) -> None:
        """Begins a job; one that is running goes on."""
        if spec.request_id not in self._running:
            with _while_ray_lives():
                self._running[spec.request_id] = self._task.remote(
                    self._perform, spec, self._told, self._config.num_cpus_per_job
                )

    def cancel(self, request_id: str) -> None:
        """Ends a job, in the middle of whatever it does; one that is not running stays so."""
        import ray

        running = self._running.pop(request_id, None)
        if running is not None:
            with _while_ray_lives():
                ray.cancel(running, force=True)

    def poll(self, timeout_s: float) -> list[JobNews]:
        """Returns what happened since the last call; waits a little for it.

        Raises:
            WorkerLostError: If Ray itself was lost, and every job with it.
        """
        with _while_ray_lives():
            return self._poll(timeout_s)

    def _poll(self, timeout_s: float) -> list[JobNews]:
        import ray

        deadline = time.monotonic() + timeout_s
        while True:
            news = [
                JobNews(request_id=request_id, kind="progress", phase=phase, share=share)
                for request_id, (phase, share) in ray.get(self._told.take.remote()).items()
                if request_id in self._running
            ]
            of_ref = {ref: request_id for request_id, ref in self._running.items()}
            finished: list[Any] = []
            if of_ref:
                finished, _ = ray.wait(list(of_ref), num_returns=1, timeout=_LOOK_S)
            for ref in finished:
                news.append(self._ended(of_ref[ref]))
            if news or time.monotonic() >= deadline:
                return news
            if not of_ref:
                time.sleep(max(0.0, min(_LOOK_S, deadline - time.monotonic())))

    def _ended(self, request_id: str) -> JobNews:
        import ray

        try:
            outcome: JobOutcome = ray.get(self._running.pop(request_id))
        except ray.exceptions.RayTaskError as error:
            return JobNews(request_id=request_id, kind="failed", reason=reason_of(error.cause))
        except ray.exceptions.RayError as error:
            return JobNews(request_id=request_id, kind="lost", reason=type(error).__name__)
        return JobNews(request_id=request_id, kind="done", outcome=outcome)


@contextmanager
def _while_ray_lives() -> Iterator[None]:
    """This process outlives a raylet that is killed, and could do nothing any more."""
    from ray.exceptions import RayError

    try:
        yield
    except RayError as error:
        raise WorkerLostError(f"Ray was lost ({type(error).__name__})") from error


def reason_of(error: BaseException) -> str:
    """Returns why a job failed, in words that hold nothing of a row.

    Ours say what is wrong with settings, adapters and models; about data they may quote a value,
    and so may whatever is not ours.
    """
    if isinstance(error, DataError):
        return (
            "the records cannot be used for this adapter; check their columns, values and labels "
            "where they are"
        )
    return str(error) if isinstance(error, FedpeftError) else type(error).__name__


class _Told:
    """The actor that jobs tell how far they are; only the newest counts."""

    def __init__(self) -> None:
        self._newest: dict[str, tuple[str, float]] = {}
        self._pids: dict[str, int] = {}

    def begun(self, request_id: str, pid: int) -> None:
        self._pids[request_id] = pid

    def tell(self, request_id: str, phase: str, share: float) -> None:
        self._newest[request_id] = phase, share

    def take(self) -> dict[str, tuple[str, float]]:
        newest, self._newest = self._newest, {}
        return newest

    def pids(self) -> dict[str, int]:
        return self._pids


def _work(perform: Perform, spec: JobSpec, told: Any, num_threads: int) -> JobOutcome:
    """The task."""
    os.environ["OMP_NUM_THREADS"] = str(num_threads)
    told.begun.remote(spec.request_id, os.getpid())

    def tell(phase: str, share: float) -> None:
        told.tell.remote(spec.request_id, phase, float(share))

    return perform(spec, tell)


def _start(config: RayConfig) -> None:
    from fedpeft.errors import UnavailableError

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    settings: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if config.address:
        settings["address"] = config.address
    else:
        settings |= {
            "address": "local",
            "num_cpus": config.num_cpus_per_job * config.max_jobs,
            "object_store_memory": _OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
    try:
        ray.init(**settings)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise UnavailableError(
            f"Ray cannot be reached at {config.address or 'this machine'}: "
            f"{next(iter(str(error).splitlines()), '')}"
        ) from error
