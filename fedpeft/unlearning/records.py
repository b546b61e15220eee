"""The rows of a removal request: how they are chosen, named by one digest, and sent."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self, TypeAlias

from fedpeft.errors import DataError
from fedpeft.models.sources import unique_keys
from fedpeft.models.table import Table, listed, shown

Row: TypeAlias = Mapping[str, Any]
"""Column → value; values are what JSON can say."""

SALT_BYTES: Final = 32
_PURPOSE: Final = b"fedpeft removal records 1"
_PARTS: Final = ("forget", "retain", "held_out")


@dataclass(frozen=True, kw_only=True)
class JobRows:
    """What a removal job works on.

    Attributes:
        forget: Rows to be forgotten.
        retain: Rows that stay: of the same client, and in the affected version.
        held_out: Rows that nobody trained on, like those to be forgotten; may be empty.

    Raises:
        DataError: If there is nothing to be forgotten, a row is to be forgotten and is among the
            others too, or a value is one that JSON cannot say.
    """

    forget: Sequence[Row]
    retain: Sequence[Row] = ()
    held_out: Sequence[Row] = ()

    def __post_init__(self) -> None:
        if not self.forget:
            raise DataError("there are no rows to be forgotten; name at least one")
        forget = {text_of(row) for row in self.forget}
        for name, rows in (("stay", self.retain), ("were held out", self.held_out)):
            twice = sum(text_of(row) in forget for row in rows)
            if twice:
                raise DataError(
                    f"{twice} of the rows that {name} are to be forgotten too; leave them out"
                )

    def to_bytes(self) -> bytes:
        """Returns canonical JSON."""
        return json.dumps(
            {name: list(getattr(self, name)) for name in _PARTS},
            sort_keys=True,
            separators=(",", ":"),
            allow_nan=False,
        ).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Reads what `to_bytes` wrote.

        Raises:
            DataError: If it is something else; the message quotes no row.
        """
        try:
            read = json.loads(content, object_pairs_hook=unique_keys)
        except (ValueError, RecursionError):
            # Not `from` it: an error of JSON quotes what it could not read.
            raise DataError("the rows of the request are no JSON; send them again") from None
        if not isinstance(read, dict) or set(read) != set(_PARTS):
            raise DataError(f"the rows of a request are an object of {', '.join(_PARTS)}")
        for name, rows in read.items():
            if not isinstance(rows, list) or not all(isinstance(row, dict) and row for row in rows):
                raise DataError(f"the rows of a request: {name!r} must be a list of objects")
        return cls(**read)


def rows_of(table: Table) -> list[dict[str, Any]]:
    """Returns the rows of a table as they travel.

    Raises:
        DataError: If a value is one that JSON cannot say; it names the row and the column.
    """
    found = list(table.records())
    for number, row in enumerate(found):
        for name, value in row.items():
            try:
                text_of({name: value})
            except DataError as error:
                raise DataError(
                    f"{table.locate(number)}: column {name!r} holds a {type(value).__name__} that "
                    "JSON cannot say; write it as text or a number"
                ) from error
    return found


def text_of(row: Row) -> str:
    """Returns the one JSON text of a row: equal rows have equal texts.

    Raises:
        DataError: If a value is one that JSON cannot say.
    """
    try:
        return json.dumps(row, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise DataError("a row of a request holds a value that JSON cannot say") from None


def records_digest(salt: bytes, rows: Iterable[Row]) -> str:
    """Returns the sha256 over the salt and the rows, hex.

    Without the salt nobody can try rows against it. The order of the rows does not count.

    Args:
        salt: Random, 32 bytes; whoever asks for the removal keeps it.
        rows: To be forgotten.

    Raises:
        DataError: If the salt has another length, or a value is one that JSON cannot say.
    """
    if len(salt) != SALT_BYTES:
        raise DataError(f"the salt of a request has {SALT_BYTES} bytes, got {len(salt)}")
    texts = sorted(text_of(row) for row in rows)
    return hashlib.sha256(_PURPOSE + salt + "\n".join(texts).encode()).hexdigest()


def select(
    table: Table,
    *,
    ids: Sequence[str] = (),
    id_column: str = "id",
    file: Table | None = None,
    query: Sequence[str] = (),
) -> tuple[Table, Table]:
    """Divides a client's rows into those to be forgotten and those that stay.

    Args:
        table: All rows of the client.
        ids: Values of `id_column`, each of exactly one row; or
        id_column: Its name.
        file: rows to be forgotten: every row of `table` that agrees with one of these in all
            columns that these have; or
        query: conditions `column=value`, all of which hold. 3 and "3" are equal.

    Returns:
        The rows to be forgotten, and the others; in the order of `table`.

    Raises:
        DataError: If not exactly one way to choose was given, nothing or everything was chosen, an
            id or row was named twice or is not there, or a row that stays differs from one that is
            to be forgotten in its id alone.
    """
    ways = [name for name, given in (("ids", ids), ("file", file), ("query", query)) if given]
    if len(ways) != 1:
        raise DataError(
            "name the rows to be forgotten in exactly one way: by ids, by a file of rows, or by a "
            f"query on columns; got {' and '.join(ways) or 'none'}"
        )
    if ids:
        chosen = _by_ids(table, ids, id_column)
    elif file is not None:
        chosen = _by_rows(table, file)
    else:
        chosen = _by_query(table, query)
    if not chosen:
        raise DataError(f"no row of {table.location} was chosen; there is nothing to be forgotten")
    if len(chosen) == table.num_rows:
        raise DataError(
            f"all {table.num_rows} rows of {table.location} were chosen, and none would stay; a "
            "removal forgets some rows and keeps the others. To leave with all, ask the operator "
            "to retrain without you"
        )
    rest = [row for row in range(table.num_rows) if row not in chosen]
    if ids:
        _refuse_copies(table, id_column, chosen, rest)
    return table.take(sorted(chosen)), table.take(rest)


def _by_ids(table: Table, ids: Sequence[str], column: str) -> set[int]:
    _refuse_twice("ids", ids)
    places: dict[str, list[int]] = {}
    for row, value in enumerate(table.column(column)):
        places.setdefault(_plain(value), []).append(row)
    missing = [name for name in ids if name not in places]
    if missing:
        raise DataError(
            f"{table.location} has no row whose {column!r} is {listed(missing)}; name rows that "
            "are there"
        )
    several = next((name for name in ids if len(places[name]) > 1), None)
    if several is not None:
        raise DataError(
            f"{table.location}: {len(places[several])} rows have the {column!r} {shown(several)}, "
            f"and an id names one; choose them with a query, {column}={several}"
        )
    return {places[name][0] for name in ids}


def _by_rows(table: Table, file: Table) -> set[int]:
    names = list(file.columns)
    for name in names:
        table.column(name)  # an unknown one is an error, and not a row that is not there
    places: dict[tuple[str, ...], list[int]] = {}
    for row, key in enumerate(_keys(table, names)):
        places.setdefault(key, []).append(row)
    found: set[int] = set()
    seen: dict[tuple[str, ...], int] = {}
    for row, key in enumerate(_keys(file, names)):
        if key in seen:
            raise DataError(
                f"{file.locate(row)} is the same row as {file.locate(seen[key])}; name each once"
            )
        seen[key] = row
        if key not in places:
            raise DataError(f"{file.locate(row)} is no row of {table.location}; leave it out")
        found.update(places[key])
    return found


def _by_query(table: Table, query: Sequence[str]) -> set[int]:
    found = set(range(table.num_rows))
    for condition in query:
        name, equals, value = condition.partition("=")
        if not equals or not name:
            raise DataError(f"a query is column=value, got {shown(condition)}")
        matching = {row for row, v in enumerate(table.column(name)) if _plain(v) == value}
        if not matching:
            raise DataError(f"{table.location} has no row with {shown(condition)}")
        found &= matching
    return found


def _refuse_twice(what: str, names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{what}: {listed(twice)} was named twice; name each once")


def _refuse_copies(
    table: Table, id_column: str, chosen: Iterable[int], rest: Iterable[int]
) -> None:
    """A row that stays and differs in its id alone would teach again what is to be forgotten."""
    names = [name for name in table.columns if name != id_column]
    if not names:
        return
    keys = list(_keys(table, names))
    forgotten = {keys[row]: row for row in chosen}
    for row in rest:
        if keys[row] in forgotten:
            raise DataError(
                f"{table.locate(row)} would stay and is the same row as "
                f"{table.locate(forgotten[keys[row]])}, which is to be forgotten; choose both"
            )


def _keys(table: Table, names: Sequence[str]) -> Iterable[tuple[str, ...]]:
    return zip(*([_plain(v) for v in table.column(name)] for name in names), strict=True)


def _plain(value: object) -> str:
    """One text per value, so that 3 in a JSONL file and "3" in a CSV file are the same."""
    if isinstance(value, str | int):
        return str(value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return json.dumps(value, sort_keys=True, default=str)
