"""Removal requests as they are made: planned, recorded once, and given what their job needs."""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime

from fedpeft.errors import DataError, VerificationError
from fedpeft.registry.artifacts import ArtifactStore
from fedpeft.unlearning.order import JobOrder
from fedpeft.unlearning.plan import RemovalPlan
from fedpeft.unlearning.sealing import JobKey
from fedpeft.wire.catalogue import Refused
from fedpeft_server.ports import RemovalEngine
from fedpeft_server.records import AdapterRecord, RemovalRecord, RemovalState
from fedpeft_server.removals import events
from fedpeft_server.removals.again import up_to_date
from fedpeft_server.removals.orders import job_order, named_version
from fedpeft_server.removals.planning import (
    RETRAIN,
    Wish,
    already_removed,
    known_of,
    needs_records,
    plan_removal,
)
from fedpeft_server.removals.secrets import check_sealed
from fedpeft_server.state import NotFoundError, SameRequestError, State, WrongStateError
from fedpeft_server.state.removals import OPEN


@dataclass(frozen=True, kw_only=True)
class Order:
    """A request as somebody makes it, in the right form.

    Attributes:
        adapter: An alias or the beginning of a digest.
        records_digest: Over the records and a salt that the requester keeps.
        idempotency_key: With the same key the same requester gets the same request.
    """

    wish: Wish
    adapter: str
    deadline: datetime | None
    records_digest: str
    idempotency_key: str


class Requests:
    """Takes removal requests in. Who may make one is decided before."""

    def __init__(
        self,
        state: State,
        artifacts: ArtifactStore,
        engine: RemovalEngine,
        *,
        max_open: int,
        max_records_bytes: int,
    ) -> None:
        """Takes where requests are kept, what brings them forward, and how much one may be.

        Args:
            state: The database of record.
            artifacts: Where sealed records are kept.
            engine: Brings requests forward.
            max_open: Requests about one client's data at a time.
            max_records_bytes: Of the sealed records of one request.
        """
        self._state, self._artifacts, self._engine = state, artifacts, engine
        self._max_open, self._max_records_bytes = max_open, max_records_bytes

    def plan(self, wish: Wish, adapter: str) -> RemovalPlan:
        """Returns what a request would do; nothing is changed.

        Raises:
            RemoteError: See `planning.plan_removal`; `no-such-adapter`.
        """
        named = self._named(adapter)
        return plan_removal(wish, named, known_of(self._state, wish.client_id))

    def request(self, order: Order) -> RemovalRecord:
        """Records a request, and has its job begun where that needs nothing more.

        Raises:
            RemoteError: As for `plan`; `already-exists` for a key that was used for another
                request, or where an open request removes the same records; `busy` where there are
                too many.
        """
        first = self._state.removal_with_key(order.wish.asked_by, order.idempotency_key)
        if first is not None:
            if not _is_same(first, order):
                raise Refused.ALREADY_EXISTS.error("this key was used for another removal request")
            if first.state is RemovalState.PLANNED:  # the call of then may have got no further
                self._engine.start(first.request_id)
            return first
        wish, now = order.wish, datetime.now(UTC)
        if order.deadline is not None and order.deadline <= now:
            raise Refused.INVALID.error("the deadline has passed already; name a later one")
        named = self._named(order.adapter)
        known = known_of(self._state, wish.client_id)
        plan = plan_removal(wish, named, known)
        before = already_removed(order.records_digest, named, known)
        if before is not None:
            raise Refused.NEVER_TRAINED.error(f"removal {before} has removed the same records")
        if sum(removal.state in OPEN for removal in known.removals) >= self._max_open:
            raise Refused.BUSY.error(f"{self._max_open} removals of {wish.client_id} are open")
        key = JobKey.generate() if needs_records(wish, named, known) else None
        removal = RemovalRecord(
            request_id=secrets.token_hex(8),
            state=RemovalState.PLANNED if key is None else RemovalState.RECEIVED,
            client_id=wish.client_id,
            adapter=named.digest,
            run_id=named.run_id,
            round=named.round,
            place=wish.place,
            method=wish.method,
            num_records=wish.num_records,
            records_digest=order.records_digest,
            settings=wish.settings,
            void_guarantee=wish.void_guarantee,
            private_job=wish.private_job,
            deadline=order.deadline,
            plan=plan.to_body(),
            requested_by=wish.asked_by,
            created_at=now,
            updated_at=now,
            job_public_key=key.public if key else None,
            job_private_key=key.private if key else None,
        )
        try:
            kept = self._state.add_removal(removal, order.idempotency_key)
        except SameRequestError as error:
            raise Refused.ALREADY_EXISTS.error(str(error)) from error
        if kept.request_id == removal.request_id:
            self._tell_state(kept)
            if kept.state is RemovalState.PLANNED:
                self._engine.start(kept.request_id)
        return kept

    def take_records(self, removal: RemovalRecord, sealed: bytes) -> RemovalRecord:
        """Stores the sealed records of a request, once, and has its job begun.

        Raises:
            RemoteError: `too-large`; `invalid`, if they cannot be opened or are not the rows of
                such a request; `wrong-state`, if it takes none.
        """
        if len(sealed) > self._max_records_bytes:
            raise Refused.TOO_LARGE.error(
                f"records of {len(sealed)} bytes, where {self._max_records_bytes} are allowed; "
                "send fewer rows that stay"
            )
        artifact = hashlib.sha256(sealed).hexdigest()
        if removal.sealed == artifact:
            self._engine.start(removal.request_id)
            return removal
        if removal.job_public_key is None:
            raise Refused.WRONG_STATE.error(
                f"removal {removal.request_id} is {removal.state} and takes no records"
            )
        try:
            check_sealed(removal, sealed)
        except (DataError, VerificationError) as error:
            raise Refused.INVALID.error(str(error)) from error
        # Only now: what was opened is nobody else's artifact, so that it may be deleted.
        self._artifacts.put(sealed)
        try:
            stored = self._state.store_sealed(removal.request_id, artifact)
        except WrongStateError as error:
            if self._state.removal(removal.request_id).sealed != artifact:
                self._artifacts.delete(artifact)
            raise Refused.WRONG_STATE.error(str(error)) from error
        body = {"size_bytes": len(sealed)}
        self._state.add_removal_event(removal.request_id, events.RECORDS, body)
        self._tell_state(stored)
        self._engine.start(removal.request_id)
        return stored

    def job(self, removal: RemovalRecord) -> tuple[JobOrder, bytes]:
        """Returns the order of a job that runs at the client, and the version that it starts from.

        Raises:
            RemoteError: `wrong-state`, if no job at the client is waited for; `withdrawn`.
        """
        at_client = removal.place == "client" and removal.method != RETRAIN
        # Running: killed while it took the successor.
        waits = removal.state in (RemovalState.PLANNED, RemovalState.RUNNING)
        if not at_client or not waits:
            raise Refused.WRONG_STATE.error(
                f"removal {removal.request_id} is {removal.state}, by {removal.method} at the "
                f"{removal.place}; a job is given out where it runs at the client and is planned"
            )
        current = up_to_date(self._state, removal)
        order = job_order(self._state, self._artifacts, current)
        return order, self._artifacts.get(named_version(self._state, current).artifact)

    def _named(self, adapter: str) -> AdapterRecord:
        try:
            return self._state.named_adapter(adapter)
        except NotFoundError as error:
            raise Refused.NO_SUCH_ADAPTER.error(adapter) from error

    def _tell_state(self, removal: RemovalRecord) -> None:
        body = {"state": removal.state.value, "reason": removal.reason}
        self._state.add_removal_event(removal.request_id, events.STATE, body)


def _is_same(first: RemovalRecord, order: Order) -> bool:
    """Whether a key was used for this very request; its alias may point elsewhere by now."""
    wish = order.wish
    return (
        first.client_id,
        first.place,
        first.method,
        first.num_records,
        first.records_digest,
        first.settings,
        first.void_guarantee,
        first.private_job,
        first.deadline,
    ) == (
        wish.client_id,
        wish.place,
        wish.method,
        wish.num_records,
        order.records_digest,
        wish.settings,
        wish.void_guarantee,
        wish.private_job,
        order.deadline,
    )
