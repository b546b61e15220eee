"""The rows of a job: checked, cut in parts, as tables."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedpeft.errors import DataError
from fedpeft.federated.assembly import needed_columns
from fedpeft.models.data_config import DataConfig
from fedpeft.models.model_config import ModelConfig
from fedpeft.models.table import Table, listed
from fedpeft.types import derive_seed
from fedpeft.unlearning.records import JobRows, Row

_FEWEST_TO_DIVIDE = 8
_FEWEST_KEPT = 2


@dataclass(frozen=True, kw_only=True)
class JobTables:
    """The rows of a job.

    Attributes:
        forget: Rows to be forgotten.
        retain: Rows that stay and that the method may see.
        check: Rows that stay on which utility is measured.
        held_out: Rows that nobody trained on; may be without rows.
        shares: Whether `check` holds rows of `retain`, since there were too few to divide.
    """

    forget: Table
    retain: Table
    check: Table
    held_out: Table
    shares: bool


def job_tables(
    rows: JobRows, model: ModelConfig, data: DataConfig, *, check_share: float, seed: int
) -> JobTables:
    """Checks the rows and sets some of those that stay apart.

    Args:
        rows: Of the request.
        model: Of the run: its task says which columns a row needs.
        data: Names the columns.
        check_share: Share of the rows that stay to set apart.
        seed: Draws them.

    Raises:
        DataError: If there are fewer than two rows that stay, a row lacks a column, or two rows
            of different kinds agree in the columns that the task reads.
    """
    columns = needed_columns(model, data)
    kinds = {
        "rows to be forgotten": list(rows.forget),
        "rows that stay": list(rows.retain),
        "held-out rows": list(rows.held_out),
    }
    _check(kinds, columns)
    forget, retain, held_out = (_table(name, some, columns) for name, some in kinds.items())
    order = np.random.default_rng(derive_seed(seed, "check")).permutation(retain.num_rows).tolist()
    if retain.num_rows < _FEWEST_TO_DIVIDE:
        return JobTables(forget=forget, retain=retain, check=retain, held_out=held_out, shares=True)
    apart = max(_FEWEST_KEPT, math.ceil(check_share * retain.num_rows))
    apart = min(apart, retain.num_rows - _FEWEST_KEPT)
    return JobTables(
        forget=forget,
        retain=retain.take(sorted(order[apart:])),
        check=retain.take(sorted(order[:apart])),
        held_out=held_out,
        shares=False,
    )


def _check(kinds: Mapping[str, Sequence[Row]], columns: Sequence[str]) -> None:
    retain = kinds["rows that stay"]
    if len(retain) < _FEWEST_KEPT:
        raise DataError(
            f"a removal needs {_FEWEST_KEPT} rows or more that stay, got {len(retain)}: whether "
            "the adapter still works is measured on them; where all rows of a client are to go, "
            "give rows of another source, or retrain"
        )
    owner: dict[str, str] = {}
    for name, rows in kinds.items():
        both: dict[str, int] = {}
        for number, row in enumerate(rows, start=1):
            missing = [column for column in columns if row.get(column) is None]
            if missing:
                raise DataError(f"{name}: row {number} has no {listed(missing)}")
            other = owner.setdefault(_content(row, columns), name)
            if other != name:
                both[other] = both.get(other, 0) + 1
        for other, count in both.items():
            raise DataError(
                f"{count} of the {name} are among the {other} as well, by their content; take "
                "them out of one"
            )


def _content(row: Row, columns: Sequence[str]) -> str:
    return json.dumps([str(row[column]) for column in columns])


def _table(name: str, rows: Sequence[Row], columns: Sequence[str]) -> Table:
    """Every column that all rows have; those of the task in any case."""
    common = set.intersection(*(set(row) for row in rows)) if rows else set(columns)
    return Table(name, {column: [row[column] for row in rows] for column in sorted(common)})
