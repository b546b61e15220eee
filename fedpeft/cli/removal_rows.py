"""What `fedpeft removal request` sends of a client's file: chosen rows, in the columns needed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpeft.errors import InputError

if TYPE_CHECKING:
    from fedpeft.models.table import Table
    from fedpeft.unlearning.records import JobRows


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


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A client's rows, divided."""

    forget: "Table"
    retain: "Table"


def choose(choice: Choice) -> Chosen:
    """Divides the client's file.

    Raises:
        DataError: As `fedpeft.unlearning.records.select`, or if a file cannot be read.
    """
    from fedpeft.models.sources import read_table
    from fedpeft.unlearning.records import select

    forget, retain = select(
        read_table(choice.data, []),
        ids=[name.strip() for name in choice.ids.split(",")] if choice.ids else (),
        id_column=choice.id_column,
        file=read_table(choice.records, []) if choice.records is not None else None,
        query=choice.query,
    )
    return Chosen(forget=forget, retain=retain)


def columns_of(config: Mapping[str, Any], there: Sequence[str]) -> list[str]:
    """Returns the columns that a job reads: those of the task, and those that only the gate reads.

    No other column leaves the machine.

    Args:
        config: Of the run that made the adapter.
        there: Columns of the client's file.
    """
    from fedpeft.config import validate_config
    from fedpeft.federated.assembly import needed_columns
    from fedpeft.unlearning.gate.rows import PARAPHRASED, PERTURBED

    loaded = validate_config(config, "the adapter's run")
    wanted = needed_columns(loaded.model, loaded.data)
    return [*wanted, *(name for name in (PARAPHRASED, PERTURBED) if name in there)]


def rows_to_send(
    chosen: Chosen, columns: Sequence[str], *, num_retain: int, held_out: Path | None, seed: int
) -> "JobRows":
    """Returns what a job at the server gets.

    Args:
        chosen: The client's rows.
        columns: To be sent.
        num_retain: Rows that stay, at most; drawn at random.
        held_out: File of rows that nobody trained on.
        seed: Draws them.

    Raises:
        DataError: If a column is missing, or a row is to be forgotten and would stay too.
    """
    import numpy as np

    from fedpeft.models.sources import read_table
    from fedpeft.unlearning.records import JobRows, rows_of

    retain = chosen.retain
    if retain.num_rows > num_retain:
        drawn = np.random.default_rng(seed).choice(retain.num_rows, num_retain, replace=False)
        retain = retain.take(sorted(drawn.tolist()))
    others = rows_of(in_columns(read_table(str(held_out), []), columns)) if held_out else []
    return JobRows(
        forget=rows_of(in_columns(chosen.forget, columns)),
        retain=rows_of(in_columns(retain, columns)),
        held_out=others,
    )


def in_columns(table: "Table", columns: Sequence[str]) -> "Table":
    """Returns the same rows in these columns alone.

    Raises:
        DataError: If there is no such column.
    """
    from fedpeft.models.table import Table

    places = tuple(table.locate(row) for row in range(table.num_rows))
    return Table(table.location, {name: table.column(name) for name in columns}, places)


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
