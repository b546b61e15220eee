"""Removal requests: where each stands, what it keeps until its end, and what happened in it."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, insert, select, update

from fedpeft.database import Database
from fedpeft.ledger.chain import utc_now
from fedpeft_server.records import (
    AdapterRecord,
    JsonValue,
    RemovalEventRecord,
    RemovalRecord,
    RemovalState,
)
from fedpeft_server.removals.events import STATE
from fedpeft_server.state import audit
from fedpeft_server.state.errors import (
    NotFoundError,
    SameRequestError,
    StateError,
    WrongStateError,
)
from fedpeft_server.state.news import News
from fedpeft_server.state.store import Store, columns, following, one, values
from fedpeft_server.state.tables import REMOVAL_EVENTS, REMOVALS

_NOTHING: Mapping[str, JsonValue] = {}

_S = RemovalState
ENDED: Final = frozenset({_S.PUBLISHED, _S.FAILED, _S.CANCELLED})
OPEN: Final = frozenset(RemovalState) - ENDED
_GIVEN_UP: Final = frozenset({_S.FAILED, _S.CANCELLED})
NEXT: Final[Mapping[RemovalState, frozenset[RemovalState]]] = {
    _S.RECEIVED: _GIVEN_UP | {_S.PLANNED},
    _S.PLANNED: _GIVEN_UP | {_S.RUNNING},
    # Back to `planned`: whoever worked on it was lost.
    _S.RUNNING: _GIVEN_UP | {_S.VERIFYING, _S.PLANNED},
    _S.VERIFYING: _GIVEN_UP | {_S.PUBLISHED, _S.PLANNED},
    **dict.fromkeys(ENDED, frozenset()),
}
"""State → states that may follow."""

_NO_KEYS: Final[Mapping[str, None]] = {"job_public_key": None, "job_private_key": None}


class Removals(Store):
    """The removal requests' part of the state."""

    def __init__(self, database: Database) -> None:
        """Use `open`."""
        super().__init__(database)
        self._removal_news = News()

    def add_removal(self, removal: RemovalRecord, idempotency_key: str) -> RemovalRecord:
        """Records a request.

        Args:
            removal: With an id of its own.
            idempotency_key: Not empty; with the same key the same requester gets its first request.

        Returns:
            The request, or the one that was made with this key before.

        Raises:
            StateError: If the key is empty.
            SameRequestError: If an open request removes the same records from the same version.
            WrongStateError: If another request has the id.
        """
        if not idempotency_key:
            raise StateError("a removal is requested with an idempotency key; this one's is empty")
        with self._database.writing() as connection:
            first = _find(connection, *_with_key(removal.requested_by, idempotency_key))
            if first is not None:
                return first
            if _find(connection, REMOVALS.c.request_id == removal.request_id) is not None:
                raise WrongStateError(f"there is a removal {removal.request_id} already")
            same = _read(
                connection,
                REMOVALS.c.records_digest == removal.records_digest,
                REMOVALS.c.client_id == removal.client_id,
                REMOVALS.c.adapter == removal.adapter,
                REMOVALS.c.state.in_([state.value for state in OPEN]),
            )
            if same:
                raise SameRequestError(same[0].request_id)
            connection.execute(
                insert(REMOVALS).values(
                    **_written(values(REMOVALS, removal)),
                    position=following(connection, REMOVALS.c.position),
                    idempotency_key=idempotency_key,
                )
            )
        return removal

    def removal_with_key(self, requested_by: str, idempotency_key: str) -> RemovalRecord | None:
        """Returns the request that somebody made with a key; None if none was."""
        with self._database.reading() as connection:
            return _find(connection, *_with_key(requested_by, idempotency_key))

    def removal(self, request_id: str) -> RemovalRecord:
        """Returns one request.

        Raises:
            NotFoundError: If there is none of that id.
        """
        with self._database.reading() as connection:
            return known(connection, request_id)

    def removals(self, client_id: str | None = None) -> list[RemovalRecord]:
        """Returns the requests about one client's data, or all, oldest first."""
        where = [] if client_id is None else [REMOVALS.c.client_id == client_id]
        with self._database.reading() as connection:
            return _read(connection, *where)

    def rows_removed_since(self, client_id: str, moment: datetime) -> bool:
        """Returns whether a client has asked for a removal since; see `removed_since`."""
        with self._database.reading() as connection:
            return removed_since(connection, client_id, moment)

    def removals_in(self, states: Collection[RemovalState]) -> list[RemovalRecord]:
        """Returns the requests in these states, the earliest deadline first.

        Those without a deadline come last; of equal ones the older is first.
        """
        deadline = REMOVALS.c.deadline
        query = (
            select(*columns(REMOVALS, RemovalRecord))
            .where(REMOVALS.c.state.in_([state.value for state in states]))
            .order_by(deadline.is_(None), deadline, REMOVALS.c.position)
        )
        with self._database.reading() as connection:
            return [_removal(row) for row in connection.execute(query).mappings()]

    def store_sealed(self, request_id: str, artifact: str) -> RemovalRecord:
        """Records where the sealed records are, once; with them the request is planned.

        The same again changes nothing. Nobody is shown the public key any more: there is nothing
        left to seal to it.

        Raises:
            NotFoundError: If there is no such request.
            WrongStateError: If it has others, or takes none in its state.
        """
        with self._database.writing() as connection:
            removal = known(connection, request_id)
            if removal.sealed == artifact:
                return removal
            if removal.state is not RemovalState.RECEIVED or removal.job_public_key is None:
                raise WrongStateError(
                    f"removal {request_id} is {removal.state} and takes no records; they are sent "
                    "once, while it is received"
                )
            planned = RemovalState.PLANNED
            return _set(connection, removal, state=planned, sealed=artifact, job_public_key=None)

    def replan_removal(
        self, request_id: str, named: AdapterRecord, plan: Mapping[str, JsonValue]
    ) -> RemovalRecord:
        """Has a request begin from another version: the one that it named was withdrawn meanwhile.

        Args:
            request_id: The request.
            named: The version.
            plan: Made for this version.

        Raises:
            NotFoundError: If there is no such request.
            WrongStateError: If its job has begun, or it has ended.
        """
        with self._database.writing() as connection:
            removal = known(connection, request_id)
            if removal.state not in (RemovalState.RECEIVED, RemovalState.PLANNED):
                raise WrongStateError(
                    f"removal {request_id} is {removal.state}; only one whose job has not begun is "
                    "planned again"
                )
            return _set(
                connection,
                removal,
                adapter=named.digest,
                run_id=named.run_id,
                round=named.round,
                plan=plan,
            )

    def advance(
        self,
        request_id: str,
        state: RemovalState,
        *,
        expected: Collection[RemovalState],
        reason: str = "",
        num_attempts: int | None = None,
        successor: str | None = None,
        receipt_json: str | None = None,
    ) -> RemovalRecord:
        """Changes where a request stands, and tells of it; see the function `advance`.

        The event is of the same transaction, and so is an entry of the audit log where the request
        fails or is cancelled.
        """
        with self._database.writing() as connection:
            removal = advance(
                connection,
                request_id,
                state,
                expected=expected,
                reason=reason,
                num_attempts=num_attempts,
                successor=successor,
                receipt_json=receipt_json,
            )
            add_event(connection, request_id, STATE, {"state": state.value, "reason": reason})
            if state in _GIVEN_UP:
                audit.append(
                    connection,
                    actor=removal.requested_by,
                    action="removal",
                    subject=request_id,
                    outcome=state.value,
                    detail={"attempts": removal.num_attempts},
                )
        self.tell_removals()
        return removal

    def set_progress(self, request_id: str, progress: float) -> None:
        """Records which share of the job is done; one that is not under way keeps what it had.

        Raises:
            NotFoundError: If there is no such request.
            StateError: If it is not in [0, 1].
        """
        if not 0 <= progress <= 1:
            raise StateError(f"progress lies in [0, 1], got {progress!r}")
        with self._database.writing() as connection:
            removal = known(connection, request_id)
            if removal.state in (RemovalState.RUNNING, RemovalState.VERIFYING):
                _set(connection, removal, progress=float(progress))

    def store_result(
        self, request_id: str, artifact: str, result: Mapping[str, JsonValue]
    ) -> RemovalRecord:
        """Records what the job made, before it is published; again it replaces it.

        Args:
            request_id: The request.
            artifact: With the successor's tensors.
            result: `fedpeft.unlearning.job.JobResult` without the tensors.

        Raises:
            NotFoundError: If there is no such request.
            WrongStateError: If it has ended.
        """
        with self._database.writing() as connection:
            removal = known(connection, request_id)
            if removal.state in ENDED:
                raise WrongStateError(
                    f"removal {request_id} is {removal.state}; it takes no result any more"
                )
            return _set(connection, removal, result_artifact=artifact, result=result)

    def destroy_secrets(self, request_id: str) -> None:
        """Forgets the job's key and where the sealed records are; again it changes nothing.

        The key is in no file of SQLite's afterwards, unless somebody reads for too long.

        Delete the artifact first: afterwards nobody knows which one it was. The key is gone with
        every end of a request, so that what is left of it then cannot be read.

        Raises:
            NotFoundError: If there is no such request.
        """
        with self._database.writing() as connection:
            _set(connection, known(connection, request_id), sealed=None, **_NO_KEYS)
        self._database.scrub()

    def add_removal_event(
        self, request_id: str, kind: str, body: Mapping[str, JsonValue] = _NOTHING
    ) -> RemovalEventRecord:
        """Records an event and wakes who waits for it.

        Raises:
            NotFoundError: If there is no such request.
        """
        with self._database.writing() as connection:
            event = add_event(connection, request_id, kind, body)
        self.tell_removals()
        return event

    def removal_events(
        self, request_id: str, after: int = 0, limit: int = 1000
    ) -> list[RemovalEventRecord]:
        """Returns at most `limit` events beyond position `after`, oldest first.

        Raises:
            NotFoundError: If there is no such request.
        """
        query = (
            select(*columns(REMOVAL_EVENTS, RemovalEventRecord))
            .where(REMOVAL_EVENTS.c.request_id == request_id, REMOVAL_EVENTS.c.position > after)
            .order_by(REMOVAL_EVENTS.c.position)
            .limit(limit)
        )
        with self._database.reading() as connection:
            known(connection, request_id)
            return [RemovalEventRecord(**row) for row in connection.execute(query).mappings()]

    def wait_removal_events(
        self, request_id: str, after: int, timeout_s: float
    ) -> list[RemovalEventRecord]:
        """Returns the events beyond position `after`; waits for one while there is none.

        Only this process's events wake it: the coordinator is the only writer.

        Returns:
            None of them if the time ran out or the state was closed.

        Raises:
            NotFoundError: If there is no such request.
        """
        return self._removal_news.wait_for(
            lambda: self.removal_events(request_id, after), timeout_s
        )

    def tell_removals(self) -> None:
        """Wakes who waits, after events were written as part of another transaction."""
        self._removal_news.tell()

    def close(self) -> None:
        """Closes the database; who waits for events is let go."""
        self._removal_news.close()
        super().close()


def removed_since(connection: Connection, client_id: str, moment: datetime) -> bool:
    """Returns whether a client has asked for a removal of its rows at that moment or later.

    Whoever asks for its own rows has marked them: it makes another update without them. Where an
    operator asks, the client has marked nothing, and would send the same again.
    """
    query = select(REMOVALS.c.request_id).where(
        REMOVALS.c.client_id == client_id,
        REMOVALS.c.requested_by == client_id,
        REMOVALS.c.created_at >= moment,
    )
    return connection.execute(query.limit(1)).first() is not None


def known(connection: Connection, request_id: str) -> RemovalRecord:
    """Returns one request as part of a transaction.

    Raises:
        NotFoundError: If there is none of that id.
    """
    removal = _find(connection, REMOVALS.c.request_id == request_id)
    if removal is None:
        raise NotFoundError(f"there is no removal {request_id!r}")
    return removal


def advance(
    connection: Connection,
    request_id: str,
    state: RemovalState,
    *,
    expected: Collection[RemovalState],
    reason: str = "",
    num_attempts: int | None = None,
    successor: str | None = None,
    receipt_json: str | None = None,
) -> RemovalRecord:
    """Changes where a request stands, as part of a transaction.

    With its end the job's key is forgotten, and what was sealed to it can be read no more; delete
    it then, and call `destroy_secrets`. Progress begins again at 0 wherever the job does.

    Args:
        connection: Of the transaction.
        request_id: The request.
        state: From now on.
        expected: What it may be now.
        reason: Why, for `failed` and `cancelled`, and for a job that begins again.
        num_attempts: How often the job was begun; None: as before.
        successor: Digest of the version that is published; None: as before.
        receipt_json: None: as before.

    Returns:
        The request as it is now.

    Raises:
        NotFoundError: If there is no such request.
        WrongStateError: If its state is not among the expected ones, or no such state follows it.
    """
    removal = known(connection, request_id)
    if removal.state not in expected:
        raise WrongStateError(
            f"removal {request_id} is {removal.state}, which had to be one of "
            f"{', '.join(sorted(expected))}"
        )
    if state not in NEXT[removal.state]:
        raise WrongStateError(
            f"removal {request_id} is {removal.state}; it does not become {state}"
        )
    changes: dict[str, Any] = {"state": state, "reason": reason}
    given = {"num_attempts": num_attempts, "successor": successor, "receipt_json": receipt_json}
    changes |= {name: value for name, value in given.items() if value is not None}
    if state in (RemovalState.PLANNED, RemovalState.RUNNING):
        changes["progress"] = 0.0
    if state in ENDED:
        changes |= _NO_KEYS
    return _set(connection, removal, **changes)


def add_event(
    connection: Connection, request_id: str, kind: str, body: Mapping[str, JsonValue] = _NOTHING
) -> RemovalEventRecord:
    """Records an event as part of a transaction; call `State.tell_removals` after it.

    Raises:
        NotFoundError: If there is no such request.
    """
    known(connection, request_id)
    mine = REMOVAL_EVENTS.c.request_id == request_id
    event = RemovalEventRecord(
        position=following(connection, REMOVAL_EVENTS.c.position, mine),
        request_id=request_id,
        at=utc_now(),
        kind=kind,
        body=body,
    )
    connection.execute(insert(REMOVAL_EVENTS).values(**values(REMOVAL_EVENTS, event)))
    return event


def _set(connection: Connection, removal: RemovalRecord, **changes: Any) -> RemovalRecord:
    changes["updated_at"] = utc_now()
    connection.execute(
        update(REMOVALS)
        .where(REMOVALS.c.request_id == removal.request_id)
        .values(**_written(changes))
    )
    return replace(removal, **changes)


def _written(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a record as their columns hold them."""
    flags = {
        name: int(fields[name]) for name in ("void_guarantee", "private_job") if name in fields
    }
    state = {"state": RemovalState(fields["state"]).value} if "state" in fields else {}
    return {**fields, **flags, **state}


def _removal(row: Mapping[Any, Any]) -> RemovalRecord:
    return RemovalRecord(
        **{
            **row,
            "state": RemovalState(row["state"]),
            "void_guarantee": bool(row["void_guarantee"]),
            "private_job": bool(row["private_job"]),
        }
    )


def _with_key(requested_by: str, idempotency_key: str) -> tuple[ColumnElement[bool], ...]:
    return (
        REMOVALS.c.requested_by == requested_by,
        REMOVALS.c.idempotency_key == idempotency_key,
    )


def _find(connection: Connection, *where: ColumnElement[bool]) -> RemovalRecord | None:
    row = one(connection, REMOVALS, RemovalRecord, *where)
    return None if row is None else _removal(row)


def _read(connection: Connection, *where: ColumnElement[bool]) -> list[RemovalRecord]:
    """The requests, oldest first."""
    query = select(*columns(REMOVALS, RemovalRecord)).where(*where).order_by(REMOVALS.c.position)
    return [_removal(row) for row in connection.execute(query).mappings()]
