"""What happened in a run, for those who watch it."""

from collections.abc import Mapping

from fedpeft_server.records import EventRecord, JsonValue
from fedpeft_server.state.store import Store

_NOTHING: Mapping[str, JsonValue] = {}


class Events(Store):
    """The events' part of the state."""

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
        raise NotImplementedError

    def events(self, run_id: str, after: int = 0, limit: int = 1000) -> list[EventRecord]:
        """Returns at most `limit` events beyond position `after`, oldest first.

        Raises:
            NotFoundError: If there is no such run.
        """
        raise NotImplementedError

    def wait_events(self, run_id: str, after: int, timeout_s: float) -> list[EventRecord]:
        """Returns the events beyond position `after`; waits for one while there is none.

        Only this process's events wake it: the coordinator is the only writer.

        Returns:
            None of them if the time ran out or the state was closed.

        Raises:
            NotFoundError: If there is no such run.
        """
        raise NotImplementedError
