"""What happened in a run, for those who watch it."""

from collections.abc import Mapping

from sqlalchemy import insert, select

from fedpeft.database import Database
from fedpeft.ledger.chain import utc_now
from fedpeft_server.records import EventRecord, JsonValue
from fedpeft_server.state.news import News
from fedpeft_server.state.store import Store, columns, following, require_run, values
from fedpeft_server.state.tables import EVENTS

_NOTHING: Mapping[str, JsonValue] = {}


class Events(Store):
    """The events' part of the state."""

    def __init__(self, database: Database) -> None:
        """Use `open`."""
        super().__init__(database)
        self._news = News()

    def add_event(
        self,
        run_id: str,
        kind: str,
        *,
        round: int | None = None,  # noqa: A002
        client_id: str | None = None,
        body: Mapping[str, JsonValue] = _NOTHING,
    ) -> EventRecord:
        """Records an event and wakes who waits for it.

        Raises:
            NotFoundError: If there is no such run.
        """
        with self._database.writing() as connection:
            require_run(connection, run_id)
            event = EventRecord(
                position=following(connection, EVENTS.c.position, EVENTS.c.run_id == run_id),
                run_id=run_id,
                at=utc_now(),
                kind=kind,
                round=round,
                client_id=client_id,
                body=body,
            )
            connection.execute(insert(EVENTS).values(**values(EVENTS, event)))
        self._news.tell()
        return event

    def events(self, run_id: str, after: int = 0, limit: int = 1000) -> list[EventRecord]:
        """Returns at most `limit` events beyond position `after`, oldest first.

        Raises:
            NotFoundError: If there is no such run.
        """
        query = (
            select(*columns(EVENTS, EventRecord))
            .where(EVENTS.c.run_id == run_id, EVENTS.c.position > after)
            .order_by(EVENTS.c.position)
            .limit(limit)
        )
        with self._database.reading() as connection:
            require_run(connection, run_id)
            return [EventRecord(**row) for row in connection.execute(query).mappings()]

    def wait_events(self, run_id: str, after: int, timeout_s: float) -> list[EventRecord]:
        """Returns the events beyond position `after`; waits for one while there is none.

        Only this process's events wake it: the coordinator is the only writer.

        Returns:
            None of them if the time ran out or the state was closed.

        Raises:
            NotFoundError: If there is no such run.
        """
        return self._news.wait_for(lambda: self.events(run_id, after), timeout_s)

    def close(self) -> None:
        """Closes the database; who waits for events is let go."""
        self._news.close()
        super().close()
