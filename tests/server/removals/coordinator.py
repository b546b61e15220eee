"""A coordinator's removals in a process of their own, which kills itself at the moment it is told.

    python coordinator.py JOB.json

Jobs are done by a thread of the driver's double: what is killed here is who keeps the records.
"""

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from fedpeft.identity.certificates import read_certificate
from fedpeft.identity.keys import read_key
from fedpeft.registry.artifacts import ArtifactStore
from fedpeft.registry.signing import RegistrySigner
from fedpeft.warm_worker import WarmWorker
from fedpeft_server.manifests import Manifests
from fedpeft_server.records import RemovalState
from fedpeft_server.removals.engine import RemovalJobs
from fedpeft_server.removals.job import JobNews, JobSpec
from fedpeft_server.removals.publish import Publisher
from fedpeft_server.removals.retraining import Retraining
from fedpeft_server.state import State
from fedpeft_server.state.removals import ENDED
from tests.server.removals import works


class Driver:
    """The driver's double: a job is done when it is asked after."""

    def __init__(self) -> None:
        self._waiting: list[JobSpec] = []

    def submit(self, spec: JobSpec) -> None:
        self._waiting.append(spec)

    def cancel(self, request_id: str) -> None:
        self._waiting = [s for s in self._waiting if s.request_id != request_id]

    def poll(self, timeout_s: float) -> list[JobNews]:
        done, self._waiting = self._waiting, []
        return [
            JobNews(
                request_id=spec.request_id,
                kind="done",
                outcome=works.quick(spec, lambda phase, share: None),
            )
            for spec in done
        ]


class InProcess(WarmWorker):
    """The driver here: it is not what is killed."""

    def call(self, method: str, *args: Any, **settings: Any) -> Any:
        if self._made is None:
            self._made = self._factory()
        return getattr(self._made, method)(*args)

    _made: object | None = None


class Transactions:
    """Counts a state's transactions, and kills the process after one of them."""

    def __init__(self, state: State, last: int) -> None:
        self._write, self._last = state._database.writing, last
        self.num_done = 0
        state._database.writing = self.writing  # type: ignore[method-assign]

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        with self._write() as connection:
            yield connection
        self.num_done += 1
        if self.num_done == self._last:
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    folder, identity = Path(job["folder"]), Path(job["identity"])
    artifacts = ArtifactStore(folder / "artifacts")
    signer = RegistrySigner.open(
        folder,
        server_key=read_key(identity / "key.pem"),
        certificate=read_certificate(identity / "cert.pem"),
    )
    with State.open(folder / "server.db") as state:
        transactions = Transactions(state, job["last"])
        manifests = Manifests(state=state, signer=signer)
        engine = RemovalJobs(
            state,
            artifacts,
            Publisher(state=state, artifacts=artifacts, manifests=manifests, signer=signer),
            Retraining(
                state=state, artifacts=artifacts, folder=folder, start_run=lambda run_id: None
            ),
            make_driver=partial(InProcess, Driver, name="driver"),
            stop_run=lambda run_id, reason: None,
            watch=lambda kind, body: None,
            max_jobs=1,
            max_attempts=10,
            replica_timeout_s=0.0,
        )
        engine.recover()
        after = 0
        while True:
            removal = state.removal(job["request_id"])
            if removal.state in ENDED and removal.sealed is None:
                break
            news = state.wait_removal_events(job["request_id"], after, 0.5)
            after = news[-1].position if news else after
        engine.close()
        assert removal.state is RemovalState.PUBLISHED, removal.reason
        sys.stdout.write(str(transactions.num_done))


if __name__ == "__main__":
    main()
