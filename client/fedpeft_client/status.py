"""What a client says of itself, kept in its folder, and what its owner can know from there."""

import os
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fedpeft.errors import FedpeftError
from fedpeft.federated.tombstones import Tombstones
from fedpeft.ledger import Balance, Ledger
from fedpeft_client import events
from fedpeft_client.events import Event
from fedpeft_client.policy import ClientPolicy
from fedpeft_client.state_folder import LastUpdate, Membership, StateFolder, Status

_LONGEST_NOTE = 1000


class StatusFile:
    """Keeps `status.json` in step with a client's events; threads may share it."""

    def __init__(self, folder: StateFolder) -> None:
        """Goes on from what an earlier process left."""
        self._folder = folder
        self._lock = threading.Lock()
        before = folder.status() or Status()
        fresh = {"activity": "starting", "connected": False, "pid": os.getpid(), "since": _now()}
        self._status = before.model_copy(update=fresh)
        folder.report(self._status)

    def __call__(self, event: Event) -> None:
        """Takes an event in."""
        with self._lock:
            after = self._status.model_copy(update=_changes(event))
            if after.connected and after.activity == "starting":
                after = after.model_copy(update={"activity": "waiting"})
            if (after.activity, after.connected) != (self._status.activity, self._status.connected):
                after = after.model_copy(update={"since": _now()})
            if after != self._status:
                self._folder.report(after)
                self._status = after


def _changes(event: Event) -> dict[str, Any]:
    match event.kind:
        case events.CONNECTING:
            return {"connected": False}
        case events.CONNECTED:
            return {"connected": True}
        case events.ACCEPTED:
            return {"run_id": event.run_id, "round": None, "num_rounds": None}
        case events.ROUND_STARTED:
            return {
                "activity": "training",
                "run_id": event.run_id,
                "round": event.round,
                "num_rounds": event.body["num_rounds"],
            }
        case events.ROUND_FINISHED:
            assert event.run_id is not None
            assert event.round is not None
            update = LastUpdate(
                run_id=event.run_id,
                round=event.round,
                at=_now(),
                epsilon_spent=event.body["epsilon_spent"],
            )
            return {"activity": "waiting", "last_update": update}
        case events.REFUSED:
            return {"activity": "waiting"}
        case events.NOTE:
            return {"last_note": event.body["text"][:_LONGEST_NOTE]}
        case events.STOPPING:
            return {"activity": "stopping"}
        case events.STOPPED:
            return {"activity": "stopped", "connected": False}
    return {}


@dataclass(frozen=True, kw_only=True)
class Overview:
    """All that an owner can know of a client from its folder, also after it died.

    Attributes:
        folder: Where it is.
        running: Whether a process is it now.
        membership: What it joined; None: nothing yet.
        status: What it said last; None: it never ran.
        policy: Its owner's; None where it cannot be read.
        balance: Of its rows, in its ledger; None where that cannot be read.
        num_removed: Rows that are to be forgotten; None where that cannot be read.
        problems: Why something is missing.
    """

    folder: StateFolder
    running: bool
    membership: Membership | None
    status: Status | None
    policy: ClientPolicy | None
    balance: Balance | None
    num_removed: int | None
    problems: tuple[str, ...]

    @classmethod
    def of(cls, folder: StateFolder) -> "Overview":
        """Reads the folder and the ledger; what cannot be read is told and left out."""
        problems: list[str] = []
        membership, policy, balance, num_removed = None, None, None, None
        try:
            membership = folder.membership()
        except FedpeftError as error:
            problems.append(str(error))
        try:
            policy = ClientPolicy.read(folder.policy)
        except FedpeftError as error:
            problems.append(str(error))
        if membership is not None:
            try:
                with Ledger.open(membership.ledger, read_only=True) as ledger:
                    balance = ledger.balance(membership.dataset)
            except FedpeftError as error:
                problems.append(str(error))
        try:
            num_removed = len(Tombstones(folder.tombstones))
        except FedpeftError as error:
            problems.append(str(error))
        return cls(
            folder=folder,
            running=folder.is_running(),
            membership=membership,
            status=folder.status(),
            policy=policy,
            balance=balance,
            num_removed=num_removed,
            problems=tuple(problems),
        )

    @property
    def connected(self) -> bool:
        """Whether it runs and reaches the server."""
        return self.running and self.status is not None and self.status.connected

    @property
    def activity(self) -> str:
        """What it does; a client that was killed does nothing, whatever it said last."""
        if self.running and self.status is not None:
            return self.status.activity
        return "not running"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
