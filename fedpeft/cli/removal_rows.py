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


def rows_to_send(
    chosen: Chosen,
    config: Mapping[str, Any],
    *,
    num_retain: int,
    held_out: Path | None,
    seed: int,
    method: str,
) -> "JobRows":
    """Returns what a job at the server gets, checked as the job itself does.

    Only the columns that the task reads, and those that only the gate reads, leave the machine.

    Args:
        chosen: The client's rows.
        config: Of the run that made the adapter.
        num_retain: Rows that stay, at most; drawn at random.
        held_out: File of rows that nobody trained on.
        seed: Draws them.
        method: Retraining needs no rows that stay.

    Raises:
        DataError: If a column or a value is missing, too few rows stay, or a row is to be forgotten
            and is among the others too.
    """
    import numpy as np

    from fedpeft.config import validate_config
    from fedpeft.federated.assembly import needed_columns
    from fedpeft.models.sources import read_table
    from fedpeft.unlearning.gate.rows import PARAPHRASED, PERTURBED
    from fedpeft.unlearning.job_rows import job_tables
    from fedpeft.unlearning.records import JobRows, rows_of

    loaded = validate_config(config, "the adapter's run")
    needed = needed_columns(loaded.model, loaded.data)

    def sent(table: "Table") -> list[dict[str, Any]]:
        beside = [name for name in (PARAPHRASED, PERTURBED) if name in table.columns]
        return rows_of(in_columns(table, [*needed, *beside]))

    # A row without a value taught nothing, so it cannot show what stayed either.
    columns = [chosen.retain.column(name) for name in needed]
    whole = [n for n, row in enumerate(zip(*columns, strict=True)) if None not in row]
    retain = chosen.retain.take(whole)
    if retain.num_rows > num_retain:
        drawn = np.random.default_rng(seed).choice(retain.num_rows, num_retain, replace=False)
        retain = retain.take(sorted(drawn.tolist()))
    rows = JobRows(
        forget=sent(chosen.forget),
        retain=sent(retain),
        held_out=sent(read_table(str(held_out), [])) if held_out is not None else [],
    )
    if method != "retrain":
        job_tables(rows, loaded.model, loaded.data, check_share=0.5, seed=0)
    return rows


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
