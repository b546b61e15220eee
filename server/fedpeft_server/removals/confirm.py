"""Whether what serves an alias serves what was published: told by fingerprints of outputs."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from fedpeft.errors import FedpeftError
from fedpeft.registry.fingerprint import Fingerprint
from fedpeft_server.records import ReplicaRecord
from fedpeft_server.removals import events
from fedpeft_server.state import State

_ALIVE = timedelta(seconds=10)


def open_confirmation(state: State, request_id: str, *, timeout_s: float) -> "Confirmation | None":
    """Returns what is left to be told of a published request; None: nothing, or it was told.

    A coordinator that died after the publication left it open too.
    """
    told = {event.kind: event for event in state.removal_events(request_id)}
    published = told.get(events.PUBLISHED)
    if published is None or told.keys() & {events.CONFIRMED, events.UNCONFIRMED}:
        return None
    removal = state.removal(request_id)
    moved: Any = published.body["aliases"]
    aliases = [a.name for a in state.aliases() if a.name in moved and a.digest == removal.successor]
    if not aliases:
        return None
    measured: Any = {} if removal.result is None else removal.result["job"]
    fingerprint = measured.get("fingerprint", {})
    return Confirmation(
        request_id=request_id,
        aliases=aliases,
        adapter=removal.successor or "",
        fingerprint_json=fingerprint.get("expected", ""),
        before_json=fingerprint.get("before", ""),
        until_s=time.monotonic() + timeout_s,
        since=published.at,
    )


@dataclass(kw_only=True)
class Confirmation:
    """One publication that replicas are to follow.

    Attributes:
        aliases: That were moved.
        adapter: Digest of the successor.
        fingerprint_json: Of the successor's outputs, as the job measured them; empty where no job
            did.
        before_json: Of the affected version's; empty where no job measured it.
        until_s: By the monotonic clock; whoever has not followed by then is told of.
        since: When it was published.
    """

    request_id: str
    aliases: Sequence[str]
    adapter: str
    fingerprint_json: str
    before_json: str
    until_s: float
    since: datetime

    def settle(self, state: State) -> bool:
        """Records the outcome where there is one; returns whether there is.

        A replica counts while it reports: it has to say, after the publication, that it serves the
        successor, with outputs that are the successor's.
        """
        replicas = [
            replica
            for alias in self.aliases
            for replica in state.replicas(alias)
            if replica.reported_at >= self.since - _ALIVE
        ]
        wrong = {r.replica_id: self._problem(r) for r in replicas}
        wrong = {name: problem for name, problem in wrong.items() if problem}
        if wrong and time.monotonic() < self.until_s:
            return False
        if wrong:
            body = [{"replica": name, "problem": problem} for name, problem in wrong.items()]
            state.add_removal_event(self.request_id, events.UNCONFIRMED, {"replicas": body})
        else:
            names = [replica.replica_id for replica in replicas]
            state.add_removal_event(self.request_id, events.CONFIRMED, {"replicas": names})
        return True

    def _problem(self, replica: ReplicaRecord) -> str:
        if replica.reported_at < self.since:
            return "it has not reported since"
        if replica.adapter != self.adapter:
            return replica.problem or f"it serves {replica.adapter[:12] or 'nothing'}"
        if not self.fingerprint_json:
            return ""
        try:
            told = Fingerprint.from_json(replica.fingerprint_json)
            expected, before = map(Fingerprint.from_json, (self.fingerprint_json, self.before_json))
        except FedpeftError:
            return "its fingerprint cannot be read"
        # A replica in half precision, or with rounded weights, is near the successor and not on it.
        is_near = told.distance(expected) < told.distance(before) / 2
        if told.agrees_with(expected) or is_near:
            return ""
        return "its outputs are not those of the successor"
