"""A table of rows that knows, for every row, where it stands in the user's file."""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedpeft.errors import DataError

_MAX_NAMES = 20
_MAX_SHOWN = 60


@dataclass(frozen=True)
class Table:
    """Named columns of equal length, with the place that every row came from.

    Attributes:
        location: Where the rows came from, as the user wrote it.
        columns: Column name -> one value for each row.
        places: One place for each row ("train.jsonl:13"); empty means that rows are counted,
            "train.parquet row 13", from 1.

    Raises:
        DataError: columns or places differ in length.
    """

    location: str
    columns: Mapping[str, list[Any]]
    places: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        lengths = {name: len(values) for name, values in self.columns.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(
                f"{self.location}: every column must have the same number of rows, but they have "
                f"{lengths}; give each row a value for each column"
            )
        if self.places and len(self.places) != self.num_rows:
            raise DataError(
                f"{self.location}: expected one place for each of {self.num_rows} rows, "
                f"got {len(self.places)}; leave places empty to count rows"
            )

    @property
    def num_rows(self) -> int:
        """Number of rows; 0 for a table without columns."""
        return len(next(iter(self.columns.values()), ()))

    def locate(self, row: int) -> str:
        """Say where a row (0-based) came from: "train.jsonl:13" or "train.parquet row 13".

        A JSONL or CSV place is the 1-based physical line on which the row starts (a CSV header
        is line 1); any other place counts rows from 1.

        Raises:
            IndexError: there is no such row.
        """
        self._check_row(row)
        return self.places[row] if self.places else f"{self.location} row {row + 1}"

    def take(self, indices: Sequence[int]) -> "Table":
        """Rows `indices` (0-based, any order, repeats allowed), each keeping its place.

        Raises:
            IndexError: an index is negative or past the end.
        """
        places = tuple(self.locate(i) for i in indices)
        columns = {name: [values[i] for i in indices] for name, values in self.columns.items()}
        return Table(self.location, columns, places)

    def records(self) -> Iterator[dict[str, Any]]:
        """Each row as column name -> value."""
        for values in zip(*self.columns.values(), strict=True):
            yield dict(zip(self.columns, values, strict=True))

    def column(self, name: str) -> list[Any]:
        """Values of one column, one for each row.

        Raises:
            DataError: there is no such column; the message names those that exist.
        """
        if name not in self.columns:
            raise DataError(
                f"{self.location} has no column '{name}': its columns are "
                f"{listed(self.columns)}{did_you_mean(name, self.columns)}"
            )
        return self.columns[name]

    def categories(self, name: str) -> list[str]:
        """One column as category names: text, whole numbers and booleans become their `str`.

        So 3 in a JSONL file and "3" in a CSV file are the same category.

        Raises:
            DataError: no such column, or a value of another kind (float, null, list, ...) or an
                empty text; the message names the row's place.
        """
        return [self._category(name, row, value) for row, value in enumerate(self.column(name))]

    def _category(self, name: str, row: int, value: object) -> str:
        if isinstance(value, (str, int)) and value != "":
            return str(value)
        kind = "an empty text" if value == "" else f"{shown(value)} ({type(value).__name__})"
        remedy = "correct that row"
        if isinstance(value, float) and value.is_integer():
            remedy = f"write it as {int(value)}"
        raise DataError(
            f"{self.locate(row)}: column '{name}' should hold text, a whole number or a boolean, "
            f"but holds {kind}; {remedy}"
        )

    def _check_row(self, row: int) -> None:
        if not 0 <= row < self.num_rows:
            raise IndexError(f"row {row} of {self.location}, which has {self.num_rows} rows")


def concat_tables(tables: Sequence[Table]) -> Table:
    """One table with the rows of all, in order; every row keeps its own place.

    Columns that only some of the tables have are left out.

    Raises:
        DataError: no table, or tables without a common column.
    """
    if not tables:
        raise DataError("expected at least one table to concatenate, got none")
    names = [name for name in tables[0].columns if all(name in t.columns for t in tables)]
    if not names:
        raise DataError(
            f"{listed(t.location for t in tables)} have no column in common; "
            "give every file the same columns"
        )
    columns = {name: [value for t in tables for value in t.columns[name]] for name in names}
    places = tuple(t.locate(row) for t in tables for row in range(t.num_rows))
    return Table(", ".join(t.location for t in tables), columns, places)


def listed(names: Iterable[str]) -> str:
    """Names in quotes for a message: at most 20, then how many more."""
    known = list(names)
    text = ", ".join(f"'{name}'" for name in known[:_MAX_NAMES])
    more = len(known) - _MAX_NAMES
    return (text + (f" and {more} more" if more > 0 else "")) or "none"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most like `name`, or None where none is like it."""
    by_folded = {other.casefold(): other for other in known}
    found = difflib.get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.6)
    return by_folded[found[0]] if found else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """End of a message that offers the nearest known name, or nothing."""
    found = nearest(name, known)
    return f"; did you mean '{found}'?" if found is not None else ""


def shown(value: object) -> str:
    """A value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."
