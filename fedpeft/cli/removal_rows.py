"""How rows and a deadline are named on the command line of `fedpeft removal request`."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from fedpeft.errors import InputError

if TYPE_CHECKING:
    from fedpeft.unlearning.chosen import Chosen


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How rows are named on the command line; exactly one of `ids`, `records` and `query`.

    Attributes:
        data: The client's file.
        ids: Of `id_column`, with commas between.
        records: A file of rows.
        query: Conditions `column=value`.
    """

    data: str
    ids: str = ""
    id_column: str = "id"
    records: str | None = None
    query: Sequence[str] = ()


def choose(choice: Choice, held_out: Path | None = None) -> "Chosen":
    """Divides the client's file.

    Args:
        choice: Which rows are to be forgotten.
        held_out: File of rows that nobody trained on.

    Raises:
        DataError: As `fedpeft.unlearning.records.select`, or if a file cannot be read.
    """
    from fedpeft.models.sources import read_table
    from fedpeft.unlearning.chosen import Chosen
    from fedpeft.unlearning.records import select

    forget, retain = select(
        read_table(choice.data, []),
        ids=[name.strip() for name in choice.ids.split(",")] if choice.ids else (),
        id_column=choice.id_column,
        file=read_table(choice.records, []) if choice.records is not None else None,
        query=choice.query,
    )
    return Chosen(
        forget=forget,
        retain=retain,
        held_out=read_table(str(held_out), []) if held_out is not None else None,
    )


def deadline_of(text: str | None, now: datetime) -> datetime | None:
    """Reads until when something should be done: 30d, 12h, 90m from now, or a time in ISO 8601.

    Raises:
        InputError: If it is none; a time without a zone is in UTC.
    """
    if text is None:
        return None
    units = {"d": timedelta(days=1), "h": timedelta(hours=1), "m": timedelta(minutes=1)}
    if text[-1:] in units and text[:-1].isascii() and text[:-1].isdigit():
        return now + int(text[:-1][:9]) * units[text[-1]]
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise InputError(
            f"expected a deadline such as 30d, 12h, 90m or 2026-12-31, got {text!r}"
        ) from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
