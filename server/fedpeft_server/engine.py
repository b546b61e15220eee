"""All runs of a coordinator: each in a thread of its own, at most so many at a time.

A thread only waits and writes to the database; what computes is in other processes. At start every
run that was under way when the last coordinator ended, however it ended, goes on by itself; so does
one whose database or artifact store was away for a while.
"""

import json
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from fedpeft.errors import FedpeftError, UnavailableError
from fedpeft.registry.artifacts import ArtifactStore
from fedpeft.warm_worker import WarmWorker
from fedpeft_server import events, remote_run, simulated_run
from fedpeft_server.conversation import StoppedError
from fedpeft_server.correspondence import Correspondence
from fedpeft_server.manifests import Manifests
from fedpeft_server.post import Post
from fedpeft_server.records import RunRecord, RunStatus
from fedpeft_server.run_context import UNDER_WAY, RunContext
from fedpeft_server.run_math import RunMath
from fedpeft_server.simulated_run import Simulator
from fedpeft_server.state import State

_ENDED_BADLY = (RunStatus.STOPPED, RunStatus.FAILED)
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 2.0, 60.0

OpenPost = Callable[[str], AbstractContextManager[Post]]
"""Opens the post of a run by its id."""
Watch = Callable[[str, Mapping[str, Any]], None]
"""Is told of every event: its kind, and its run, round, client and body."""


@dataclass
class _Active:
    """A run that has a thread, or waits for one."""

    stop: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    worker: WarmWorker | None = None


class Engine:
    """Runs what was submitted. Safe to use from any thread."""

    def __init__(
        self,
        state: State,
        artifacts: ArtifactStore,
        correspondence: Correspondence,
        manifests: Manifests,
        open_post: OpenPost,
        *,
        folder: Path,
        watch: Watch,
        max_runs: int = 4,
        num_simulation_workers: int = 2,
        make_worker: Callable[..., WarmWorker] = WarmWorker,
    ) -> None:
        """Starts nothing yet.

        Args:
            state: The database of record.
            artifacts: Where blobs are kept.
            correspondence: Signs letters and checks answers.
            manifests: Signs what is exported.
            open_post: Reaches the clients of a run.
            folder: For files of runs that are under way.
            watch: Is told of every event.
            max_runs: At a time; others wait.
            num_simulation_workers: Ray actors of a simulated run.
            make_worker: Makes the process of a run.
        """
        self._state, self._artifacts = state, artifacts
        self._correspondence, self._open_post = correspondence, open_post
        self._manifests = manifests
        self._folder, self._watch = folder, watch
        self._num_simulation_workers = num_simulation_workers
        self._make_worker = make_worker
        self._threads = ThreadPoolExecutor(max_runs, thread_name_prefix="run")
        self._lock = threading.Lock()
        self._active: dict[str, _Active] = {}
        self._closing = False

    def recover(self) -> list[str]:
        """Goes on with all runs that are under way in the database, oldest first; their ids."""
        found = [run.run_id for run in self._state.runs() if run.status in UNDER_WAY]
        for run_id in found:
            self.start(run_id)
        return found

    def start(self, run_id: str) -> None:
        """Begins a run that is in the database, or goes on with it; twice changes nothing."""
        with self._lock:
            if self._closing or run_id in self._active:
                return
            active = _Active()
            self._active[run_id] = active
            self._threads.submit(self._run, run_id, active)

    def stop(self, run_id: str, reason: str) -> RunRecord:
        """Stops a run where it can be resumed; what clients were charged stays charged.

        Raises:
            WrongStateError: If it is not under way.
            NotFoundError: If there is none.
        """
        stopped = self._state.set_run_status(
            run_id, RunStatus.STOPPED, reason=reason, expected=UNDER_WAY
        )
        self._tell(run_id, events.STATUS, status=RunStatus.STOPPED.value, reason=reason)
        self._interrupt(run_id)
        return stopped

    def resume(self, run_id: str) -> RunRecord:
        """Goes on with a run that was stopped or failed.

        Raises:
            WrongStateError: If it was neither.
            NotFoundError: If there is none.
        """
        with self._lock:
            ending = self._active.get(run_id)
        if ending is not None and ending.stop.is_set():
            ending.ended.wait()
        resumed = self._state.set_run_status(run_id, RunStatus.SUBMITTED, expected=_ENDED_BADLY)
        self._tell(run_id, events.STATUS, status=RunStatus.SUBMITTED.value, reason="")
        self.start(run_id)
        return resumed

    def close(self) -> None:
        """Ends all threads; the runs stay under way and go on with the next coordinator."""
        with self._lock:
            self._closing = True
            under_way = list(self._active)
        for run_id in under_way:
            self._interrupt(run_id)
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _run(self, run_id: str, active: "_Active") -> None:
        pause_s = _FIRST_PAUSE_S
        try:
            while not active.stop.is_set():
                try:
                    self._attempt(run_id, active)
                except UnavailableError as error:
                    # Nothing can be recorded now, not even that it failed; and what is recorded is
                    # all that it needs to go on.
                    self._watch("unavailable", {"run_id": run_id, "reason": str(error)})
                    active.stop.wait(pause_s)
                    pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                else:
                    return
        finally:
            with self._lock:
                del self._active[run_id]
            active.ended.set()

    def _attempt(self, run_id: str, active: "_Active") -> None:
        try:
            self._execute(self._state.run(run_id), active)
        except StoppedError:
            pass
        except UnavailableError:
            raise
        except Exception as error:  # a run must not take the coordinator down
            if not active.stop.is_set():
                self._fail(run_id, error)

    def _execute(self, run: RunRecord, active: "_Active") -> None:
        if run.status not in UNDER_WAY:
            return
        config = json.loads(run.config_json)
        folder = self._folder / run.run_id
        folder.mkdir(parents=True, exist_ok=True)
        held_out = self._held_out(run, folder)
        with ExitStack() as stack:
            if run.clients == "simulated":
                if held_out is not None:
                    config["data"]["test"] = str(held_out)
                worker = self._make_worker(
                    partial(Simulator, config, folder / "run", self._num_simulation_workers),
                    name=f"simulation of run {run.run_id}",
                )
                self._own(stack, active, worker)
                simulated_run.execute(
                    run.run_id,
                    self._state,
                    self._artifacts,
                    worker,
                    self._manifests,
                    partial(self._tell, run.run_id),
                )
                return
            worker = self._make_worker(
                partial(RunMath, config, None if held_out is None else str(held_out)),
                name=f"model of run {run.run_id}",
            )
            self._own(stack, active, worker)
            remote_run.execute(
                RunContext(
                    run_id=run.run_id,
                    state=self._state,
                    artifacts=self._artifacts,
                    post=stack.enter_context(self._open_post(run.run_id)),
                    correspondence=self._correspondence,
                    math=worker,
                    manifests=self._manifests,
                    stop=active.stop,
                    watch=self._watch,
                )
            )

    def _own(self, stack: ExitStack, active: "_Active", worker: WarmWorker) -> None:
        stack.callback(worker.close)
        with self._lock:
            active.worker = worker
        if active.stop.is_set():  # whoever set it may not have seen the worker
            raise StoppedError

    def _held_out(self, run: RunRecord, folder: Path) -> Path | None:
        """Writes the held-out rows that came with the run where its processes read them."""
        if run.held_out is None:
            return None
        path = folder / f"held_out{run.held_out_suffix}"
        path.write_bytes(self._artifacts.get(run.held_out))
        return path

    def _interrupt(self, run_id: str) -> None:
        with self._lock:
            active = self._active.get(run_id)
        if active is not None:
            active.stop.set()
            if active.worker is not None:
                active.worker.close()

    def _fail(self, run_id: str, error: Exception) -> None:
        """Records why a run cannot go on; what is no error of ours is told without its text."""
        reason = str(error) if isinstance(error, FedpeftError) else type(error).__name__
        self._watch("error", {"run_id": run_id, "error": error})
        self._state.set_run_status(run_id, RunStatus.FAILED, reason=reason, expected=UNDER_WAY)
        self._tell(run_id, events.STATUS, status=RunStatus.FAILED.value, reason=reason)

    def _tell(
        self,
        run_id: str,
        kind: str,
        *,
        round_number: int | None = None,
        client_id: str | None = None,
        **body: Any,
    ) -> None:
        self._state.add_event(run_id, kind, round=round_number, client_id=client_id, body=body)
        self._watch(kind, {"run_id": run_id, "round": round_number, "client_id": client_id, **body})
