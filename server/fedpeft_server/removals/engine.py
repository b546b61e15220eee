"""All removal requests of a coordinator: brought forward by one thread, in order of deadline.

The thread only looks, writes to the database and asks the driver, whose process owns Ray. What a
request is, and how far it is, is in the database alone: the thread, the driver, Ray, a worker or
the whole coordinator may be killed at any moment, and the request goes on from its last state.

planned    → its job is begun, its attempt counted first
running    → of a job that nobody knows any more: planned again, until the attempts are used up
verifying  → its result is stored: what the gate says is looked at, and it is published, which is
             one transaction; again it publishes the same
"""

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from fedpeft.errors import FedpeftError, UnavailableError, WorkerLostError
from fedpeft.registry.artifacts import ArtifactStore
from fedpeft.warm_worker import WarmWorker
from fedpeft_server.records import JsonValue, RemovalRecord, RemovalState, RunStatus
from fedpeft_server.removals import events
from fedpeft_server.removals.again import up_to_date
from fedpeft_server.removals.confirm import Confirmation, open_confirmation
from fedpeft_server.removals.job import JobNews, JobOutcome, JobSpec
from fedpeft_server.removals.orders import job_order, named_version
from fedpeft_server.removals.planning import RETRAIN
from fedpeft_server.removals.publish import Publisher
from fedpeft_server.removals.retraining import Retraining
from fedpeft_server.removals.secrets import destroy, sweep
from fedpeft_server.removals.standing import Standing, Watch
from fedpeft_server.removals.submitted import check_submitted
from fedpeft_server.run_context import UNDER_WAY
from fedpeft_server.state import State, WrongStateError
from fedpeft_server.state.publications import Publication
from fedpeft_server.state.removals import OPEN

_S = RemovalState
_POLL_S, _IDLE_S, _ANSWER_S, _START_S = 1.0, 30.0, 20.0, 300.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0


class RemovalJobs:
    """The engine; see `ports.RemovalEngine`. Safe to use from any thread."""

    def __init__(
        self,
        state: State,
        artifacts: ArtifactStore,
        publisher: Publisher,
        retraining: Retraining,
        *,
        make_driver: Callable[[], WarmWorker],
        stop_run: Callable[[str, str], object],
        watch: Watch,
        max_jobs: int,
        max_attempts: int,
        replica_timeout_s: float,
    ) -> None:
        """Starts nothing yet.

        Args:
            state: The database of record.
            artifacts: Where blobs are kept.
            publisher: Puts publications together.
            retraining: Removes by rounds.
            make_driver: Makes the process that owns Ray; it holds a `driver.RayDriver`.
            stop_run: Stops a run that is under way, by its id, with a reason.
            watch: Is told of every event.
            max_jobs: At a time.
            max_attempts: Of one request whose workers are lost.
            replica_timeout_s: For replicas to follow a publication.
        """
        self._state, self._artifacts = state, artifacts
        self._publisher, self._retraining = publisher, retraining
        self._make_driver, self._stop_run, self._watch = make_driver, stop_run, watch
        self._standing = Standing(
            state,
            artifacts,
            retraining,
            stop_run=stop_run,
            watch=watch,
            max_attempts=max_attempts,
        )
        self._max_jobs = max_jobs
        self._replica_timeout_s = replica_timeout_s
        self._wake = threading.Event()
        self._closing = threading.Event()
        # Whoever has it may change where a request stands: the thread's steps are short.
        self._lock = threading.Lock()
        self._jobs: set[str] = set()
        self._cancelled: set[str] = set()
        self._driver: WarmWorker | None = None
        # Of jobs that are done, until they are durable: a full disk costs no second job.
        self._outcomes: dict[str, JobOutcome] = {}
        self._confirmations: list[Confirmation] = []
        self._thread = threading.Thread(target=self._work, name="removals")

    # --- what others ask for

    def recover(self) -> list[str]:
        """Begins to work, on what a coordinator before left open too; the ids of that."""
        sweep(self._state, self._artifacts)
        found = [removal.request_id for removal in self._state.removals_in(OPEN)]
        for removal in self._state.removals_in([_S.PUBLISHED]):
            self._confirm(removal.request_id)
        self._thread.start()
        return found

    def start(self, request_id: str) -> None:
        """See `ports.RemovalEngine.start`."""
        self._wake.set()

    def cancel(self, request_id: str, reason: str) -> RemovalRecord:
        """See `ports.RemovalEngine.cancel`."""
        with self._lock:
            cancelled = self._standing.end(request_id, _S.CANCELLED, reason)
            if request_id in self._jobs:
                self._cancelled.add(request_id)
        self._wake.set()
        return cancelled

    def submit(
        self,
        request_id: str,
        adapter: bytes,
        result: Mapping[str, JsonValue],
        files: Mapping[str, bytes],
    ) -> RemovalRecord:
        """See `ports.RemovalEngine.submit`."""
        removal = self._state.removal(request_id)
        if removal.result is not None and _digest(removal.result) == result.get("digest"):
            return removal
        # Running: killed between the two transactions below, and asked again.
        if _runs_here(removal) or removal.state not in (_S.PLANNED, _S.RUNNING):
            raise WrongStateError(f"removal {request_id} is {removal.state}; it takes no result")
        named = named_version(self._state, removal)
        order = job_order(self._state, self._artifacts, removal)
        outcome = JobOutcome(result=result, adapter=adapter, files=files)
        check_submitted(order.to_json(), outcome, self._artifacts.get(named.artifact))
        with self._lock:
            if self._state.removal(request_id).state is _S.PLANNED:
                self._standing.begun(removal)
            self._store(request_id, outcome, "nobody" if order.is_private else "client")
        self._wake.set()
        return self._state.removal(request_id)

    def close(self) -> None:
        """Ends the thread and the jobs; the requests go on with the next coordinator."""
        self._closing.set()
        self._wake.set()
        driver = self._driver
        if driver is not None:
            driver.close()
        if self._thread.ident is not None:
            self._thread.join()

    # --- the thread

    def _work(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self._closing.is_set():
            try:
                self._step()
                pause_s = _FIRST_PAUSE_S
            except UnavailableError as error:
                self._watch("unavailable", {"reason": str(error)})
                self._closing.wait(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            except Exception as error:  # one bad request must not end all the others
                self._watch("error", {"error": error})
                self._closing.wait(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _step(self) -> None:
        """One look at everything, top to bottom."""
        self._wake.clear()
        self._end_cancelled()
        for request_id in list(self._outcomes):
            self._one(self._state.removal(request_id), self._keep)
        self._requeue_lost()
        for removal in self._state.removals_in([_S.VERIFYING]):
            self._one(removal, self._publish)
        waiting = self._state.removals_in([_S.PLANNED, _S.RUNNING])
        for removal in waiting:
            self._standing.tell_late(removal)
            if removal.method == RETRAIN:
                self._one(removal, self._retrain)
        for removal in waiting:
            ready = removal.state is _S.PLANNED and _runs_here(removal)
            if ready and len(self._jobs) < self._max_jobs:
                self._one(removal, self._begin)
        self._hear()
        self._confirmations = [c for c in self._confirmations if not c.settle(self._state)]

    def _one(self, removal: RemovalRecord, what: Callable[[RemovalRecord], None]) -> None:
        """Does something for one request; an error is the end of it and of no other."""
        try:
            with self._lock:
                what(self._state.removal(removal.request_id))
        except (UnavailableError, WorkerLostError):
            raise
        except FedpeftError as error:
            self._watch("failed", {"request_id": removal.request_id, "reason": str(error)})
            with self._lock:
                self._standing.fail(removal.request_id, str(error))
        except Exception as error:  # its text may quote a row
            self._watch("error", {"request_id": removal.request_id, "error": error})
            with self._lock:
                self._standing.fail(removal.request_id, type(error).__name__)

    # --- jobs

    def _begin(self, removal: RemovalRecord) -> None:
        if removal.state is not _S.PLANNED:
            return
        removal = up_to_date(self._state, removal)
        assert removal.sealed is not None
        assert removal.job_private_key is not None
        spec = JobSpec(
            request_id=removal.request_id,
            order_json=job_order(self._state, self._artifacts, removal).to_json(),
            sealed=self._artifacts.get(removal.sealed),
            private_key=removal.job_private_key,
            adapter=self._artifacts.get(named_version(self._state, removal).artifact),
        )
        self._standing.begun(removal)
        self._jobs.add(removal.request_id)
        self._ask("submit", spec, timeout_s=_START_S)

    def _hear(self) -> None:
        """Waits a little for news of the jobs, or for something else to do."""
        if not self._jobs:
            if self._outcomes or self._state.removals_in([_S.VERIFYING]):
                return
            busy = bool(self._confirmations) or any(
                r.method == RETRAIN for r in self._state.removals_in([_S.RUNNING])
            )
            self._wake.wait(_POLL_S if busy else _IDLE_S)
            return
        for news in self._ask("poll", _POLL_S, timeout_s=_ANSWER_S) or ():
            with self._lock:
                self._take(news)

    def _take(self, news: JobNews) -> None:
        removal = self._state.removal(news.request_id)
        if news.kind == "progress":
            self._state.set_progress(removal.request_id, news.share)
            body: dict[str, JsonValue] = {"phase": news.phase, "share": news.share}
            self._standing.tell(removal.request_id, events.PROGRESS, body)
            return
        self._jobs.discard(removal.request_id)
        if removal.state is not _S.RUNNING:
            return
        if news.kind == "done":
            assert news.outcome is not None
            self._outcomes[removal.request_id] = news.outcome
        elif news.kind == "failed":
            self._standing.fail(removal.request_id, news.reason)
        else:
            self._standing.again(removal, f"the worker was lost ({news.reason})")

    def _ask(self, method: str, *args: Any, timeout_s: float) -> Any:
        """Calls the driver; one that is lost has lost its jobs."""
        if self._closing.is_set():
            return None
        if self._driver is None:
            self._driver = self._make_driver()
        try:
            return self._driver.call(method, *args, timeout_s=timeout_s)
        except WorkerLostError as error:
            driver, self._driver = self._driver, None
            driver.close()
            self._jobs.clear()
            self._watch("lost", {"reason": str(error)})
            return None

    def _requeue_lost(self) -> None:
        """Takes back what is running by the database, and nobody runs."""
        if self._closing.is_set():
            return
        for removal in self._state.removals_in([_S.RUNNING]):
            known = removal.request_id in self._jobs or removal.request_id in self._outcomes
            if _runs_here(removal) and not known:
                with self._lock:
                    self._standing.again(
                        self._state.removal(removal.request_id), "whoever ran it was lost"
                    )

    def _end_cancelled(self) -> None:
        with self._lock:
            cancelled, self._cancelled = self._cancelled & self._jobs, set()
            self._jobs -= cancelled
        for request_id in cancelled:
            self._ask("cancel", request_id, timeout_s=_ANSWER_S)

    # --- rounds

    def _retrain(self, removal: RemovalRecord) -> None:
        if removal.state is _S.PLANNED:
            removal = up_to_date(self._state, removal)
            self._standing.begun(removal)
        run_id = self._retraining.begin(removal)
        made = self._retraining.outcome(run_id)
        if made is not None:
            self._standing.turn(removal.request_id, _S.VERIFYING, expected=(_S.RUNNING,))
            self._wake.set()

    # --- results

    def _keep(self, removal: RemovalRecord) -> None:
        if removal.state is _S.RUNNING:
            self._store(removal.request_id, self._outcomes[removal.request_id], "server")
        del self._outcomes[removal.request_id]

    def _store(self, request_id: str, outcome: JobOutcome, measured_by: str) -> None:
        """Makes a result durable before it counts."""
        removal = self._state.removal(request_id)
        order = job_order(self._state, self._artifacts, removal)
        run_config = dict(order.run_config) | {"adapter": outcome.result["adapter"]}
        stored: dict[str, JsonValue] = {
            "job": dict(outcome.result),
            "run_config": json.dumps(run_config, sort_keys=True),
            "measured_by": measured_by,
            "files": {
                name: {"sha256": self._artifacts.put(content), "size_bytes": len(content)}
                for name, content in outcome.files.items()
            },
        }
        artifact = self._artifacts.put(outcome.adapter)
        self._state.store_result(request_id, artifact, stored)
        self._standing.turn(request_id, _S.VERIFYING, expected=(_S.RUNNING,))

    def _publish(self, removal: RemovalRecord) -> None:
        """Looks at the gate's decision, then publishes, in one transaction."""
        if removal.state is not _S.VERIFYING:
            return
        make: Callable[[], Publication]
        if removal.method == RETRAIN:
            successor = self._retraining.outcome(self._retraining.begin(removal))
            assert successor is not None
            make = partial(self._publisher.of_rounds, removal, successor)
        else:
            assert removal.result is not None
            job: Any = removal.result["job"]
            if job["gate"] is not None and not self._passed(removal, job["gate"]):
                return
            make = partial(self._publisher.of_job, removal)
        try:
            publication = self._state.publish_removal(removal.request_id, make)
            self._state.tell_removals()
        except WrongStateError as error:
            self._standing.again(removal, str(error))
            return
        destroy(self._state, self._artifacts, removal.request_id)
        self._watch(events.PUBLISHED, {"request_id": removal.request_id})
        if publication is not None:
            self._stop_runs(publication.affected)
        self._confirm(removal.request_id)

    def _confirm(self, request_id: str) -> None:
        """Has it told whether what serves the aliases has followed."""
        found = open_confirmation(self._state, request_id, timeout_s=self._replica_timeout_s)
        if found is not None:
            self._confirmations.append(found)

    def _passed(self, removal: RemovalRecord, gate: Mapping[str, Any]) -> bool:
        """Tells what the gate decided, and ends a request that did not pass it."""
        assert removal.result is not None
        self._standing.tell(
            removal.request_id,
            events.GATE,
            {
                "passed": gate["passed"],
                "reasons": gate["reasons"],
                "measured_by": removal.result["measured_by"],
            },
        )
        if gate["passed"] is not True:
            reasons = "; ".join(gate["reasons"])
            self._standing.fail(removal.request_id, f"the gate was not passed: {reasons}")
        return gate["passed"] is True

    def _stop_runs(self, affected: Sequence[str]) -> None:
        """Stops runs that would go on from a version that was withdrawn."""
        for run in self._state.runs():
            newest = self._state.newest_adapter(run.run_id)
            if run.status in UNDER_WAY and newest is not None and newest.digest in affected:
                try:
                    self._stop_run(run.run_id, "a removal withdrew the version it goes on from")
                except WrongStateError:  # it ended by itself
                    assert self._state.run(run.run_id).status is not RunStatus.RUNNING


def _runs_here(removal: RemovalRecord) -> bool:
    return removal.place == "server" and removal.method != RETRAIN


def _digest(result: Mapping[str, JsonValue]) -> object:
    job = result["job"]
    return job.get("digest") if isinstance(job, Mapping) else None
