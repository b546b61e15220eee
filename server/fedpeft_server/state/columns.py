"""Column types that read back exactly what was written, in SQLite as in PostgreSQL."""

import json
from datetime import UTC, datetime

from sqlalchemy import Dialect, Text, TypeDecorator

from fedpeft_server.records import JsonValue


class UtcTime(TypeDecorator[datetime]):
    """A time with its zone, as text in ISO 8601, UTC, to the microsecond; texts sort as times."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> str | None:
        """Writes it."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise TypeError(f"a time needs its zone, got {value!r}")
        return value.astimezone(UTC).isoformat(timespec="microseconds")

    def process_result_value(self, value: str | None, dialect: Dialect) -> datetime | None:
        """Reads it."""
        return None if value is None else datetime.fromisoformat(value)


class Json(TypeDecorator[JsonValue]):
    """JSON in one text per value: keys sorted, no spaces, floats exact, NaN and infinity kept."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: JsonValue, dialect: Dialect) -> str | None:
        """Writes it."""
        if value is None:
            return None
        return json.dumps(value, sort_keys=True, separators=(",", ":"))

    def process_result_value(self, value: str | None, dialect: Dialect) -> JsonValue:
        """Reads it."""
        return None if value is None else json.loads(value)
