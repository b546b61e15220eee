"""What every part of a remote run works with."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fedpeft.errors import FedpeftError, WorkerLostError
from fedpeft.federated.messages import Refusal
from fedpeft.registry.artifacts import ArtifactStore
from fedpeft.warm_worker import WarmWorker
from fedpeft_server import events
from fedpeft_server.conversation import StoppedError
from fedpeft_server.correspondence import Correspondence
from fedpeft_server.manifests import Manifests
from fedpeft_server.post import Post
from fedpeft_server.records import RunStatus
from fedpeft_server.state import State

UNDER_WAY = (RunStatus.SUBMITTED, RunStatus.PREPARING, RunStatus.RUNNING)
"""A run in one of these goes on when a coordinator starts; in the others somebody must say so."""

_MOST_LOSSES = 3  # one after the other


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """One run's surroundings.

    Attributes:
        run_id: The run.
        state: The database of record.
        artifacts: Where blobs are kept.
        post: Carries letters to clients.
        correspondence: Signs and checks them.
        math: The process with the model.
        manifests: Signs what is exported.
        stop: Set when the run is asked to stop.
        watch: Is told of every event, for logs and metrics.
    """

    run_id: str
    state: State
    artifacts: ArtifactStore
    post: Post
    correspondence: Correspondence
    math: WarmWorker
    manifests: Manifests
    stop: threading.Event
    watch: Callable[[str, Mapping[str, Any]], None]

    def compute(self, method: str, *args: Any) -> Any:
        """Calls `RunMath`, again where its process was lost: what it computes has no effects.

        Raises:
            WorkerLostError: If it was lost time and again.
            StoppedError: If the run was asked to stop, which ends the process too.
        """
        for attempt in range(1, _MOST_LOSSES + 1):
            try:
                return self.math.call(method, *args)
            except WorkerLostError:
                if self.stop.is_set():
                    raise StoppedError from None
                if attempt == _MOST_LOSSES:
                    raise
                self.tell(events.NOTE, message="the process with the model was lost; begun again")
        raise AssertionError

    def enrolled(self) -> frozenset[str]:
        """Returns the clients that may take part: enrolled, and not revoked."""
        return frozenset(c.client_id for c in self.state.clients() if c.revoked_at is None)

    def heard(self, client_id: str) -> None:
        """Records, to within ten seconds, that a client answered."""
        self.state.seen(client_id, datetime.now(UTC))

    def tell(
        self,
        kind: str,
        *,
        round_number: int | None = None,
        client_id: str | None = None,
        **body: Any,
    ) -> None:
        """Records an event for those who watch the run."""
        self.state.add_event(self.run_id, kind, round=round_number, client_id=client_id, body=body)
        self.watch(
            kind, {"run_id": self.run_id, "round": round_number, "client_id": client_id, **body}
        )

    def refused(self, round_number: int, client_id: str, refusal: Refusal) -> None:
        """Records that a client will not do what it was asked."""
        self.tell(
            events.REFUSED,
            round_number=round_number,
            client_id=client_id,
            code=refusal.code,
            message=refusal.message,
        )

    def reject(self, round_number: int, client_id: str, error: FedpeftError) -> None:
        """Records, for the auditor too, that an answer of a client cannot be used."""
        code = type(error).__name__
        self.state.append_audit(
            client_id,
            "answer",
            f"run {self.run_id} round {round_number}",
            "rejected",
            {"error": code, "message": " ".join(str(error).split())[:200]},
        )
        self.tell(events.REJECTED, round_number=round_number, client_id=client_id, code=code)

    def wait(self, seconds: float) -> None:
        """Waits, unless the run is asked to stop.

        Raises:
            StoppedError: If it is.
        """
        if self.stop.wait(seconds):
            raise StoppedError
