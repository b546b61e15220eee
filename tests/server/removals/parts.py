"""A removal engine beside a control plane: real Ray, database, artifacts, signatures, calls."""

import os
import secrets
import select
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from fedpeft.identity.certificates import read_certificate
from fedpeft.identity.credentials import AUTHORITY
from fedpeft.registry.trust import RegistryTrust
from fedpeft.unlearning.receipt import Receipt, verify_receipt
from fedpeft.unlearning.records import records_digest
from fedpeft_server.config import RemovalsConfig
from fedpeft_server.records import RemovalRecord, RemovalState
from fedpeft_server.removals.assembly import removal_jobs
from fedpeft_server.removals.engine import RemovalJobs
from fedpeft_server.removals.job import Perform
from fedpeft_server.state.removals import ENDED
from tests.server.control_rig import Rig
from tests.server.removal_requests import ROWS, an_order
from tests.server.removals import works

LONG_S = 120.0


@dataclass
class Bench:
    """Everything that a test of the engine has at hand."""

    rig: Rig
    folder: Path
    running: RemovalJobs | None = None
    events: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)

    @contextmanager
    def engine(self, work: Perform, **settings: Any) -> Iterator[RemovalJobs]:
        """One coordinator's engine, from its start to its end."""
        config = RemovalsConfig(**{"replica_timeout_s": 0.0, **settings})
        engine = removal_jobs(
            config,
            state=self.rig.state,
            artifacts=self.rig.artifacts,
            manifests=self.rig.manifests,
            signer=self.rig.manifests.signer,
            engine=self.rig.engine,
            folder=self.folder / "runs",
            watch=lambda kind, body: self.events.append((kind, body)),
            work=work,
        )
        engine.recover()
        self.running = engine
        try:
            yield engine
        finally:
            self.running = None
            engine.close()

    def ask(self, adapter: str, **other: Any) -> str:
        """Asks for a removal and sends its records; the id."""
        digest = records_digest(secrets.token_bytes(32), ROWS.forget)
        clinic = self.rig.connect("clinic")
        removal = clinic.request_removal(an_order(adapter, **other), records_digest=digest)
        if removal.job_public_key:
            clinic.upload_records(removal, ROWS)
        if self.running is not None:
            self.running.start(removal.request_id)
        return removal.request_id

    def wait_for(self, request_id: str, *states: RemovalState) -> RemovalRecord:
        """Returns a request when it is in one of these states."""
        after = 0
        while True:
            removal = self.rig.state.removal(request_id)
            if removal.state in states:
                return removal
            assert removal.state not in ENDED, (removal.state, removal.reason)
            news = self.rig.state.wait_removal_events(request_id, after, LONG_S)
            assert news, f"{request_id} is {removal.state} for {LONG_S} s; {self.events[-5:]}"
            after = news[-1].position

    def ended(self, request_id: str) -> RemovalRecord:
        return self.wait_for(request_id, *ENDED)

    def receipt(self, request_id: str) -> Receipt:
        document = self.rig.state.removal(request_id).receipt_json
        assert document is not None
        return verify_receipt(document, self.trust)

    @property
    def trust(self) -> RegistryTrust:
        authority = read_certificate(self.rig.holders.folder / "operator" / AUTHORITY)
        return RegistryTrust.of_authority(authority)

    # --- jobs that wait

    @property
    def jobs(self) -> Path:
        return self.folder / "jobs"

    def prepare_jobs(self) -> None:
        self.jobs.mkdir()
        os.mkfifo(self.jobs / "waiting")
        (self.jobs / "go").hardlink_to(self.jobs / "waiting")
        os.environ[works.FOLDER] = str(self.jobs)

    def began(self, request_id: str, attempt: int = 1) -> int:
        """Returns the process of a job, when it waits."""
        path = self.jobs / f"{request_id}.begun{attempt}"
        deadline = time.monotonic() + LONG_S
        while not path.exists():
            assert time.monotonic() < deadline, self.events[-5:]
            select.select([], [], [], 0.05)
        return int(path.read_text())

    def go_on(self) -> None:
        """Lets every job go on that waits now, or will."""
        later = self.jobs / "later"
        later.touch()
        later.rename(self.jobs / "go")
        with suppress(OSError):  # nobody waits
            os.close(os.open(self.jobs / "waiting", os.O_WRONLY | os.O_NONBLOCK))


def descendants(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)
