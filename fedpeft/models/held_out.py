"""The training rows and the held-out rows of a run."""

from collections.abc import Sequence

import numpy as np

from fedpeft.errors import DataError
from fedpeft.models.data_config import DataConfig
from fedpeft.models.sources import read_table
from fedpeft.models.table import Table, concat_tables
from fedpeft.types import derive_seed


def read_train_and_test(
    data: DataConfig, columns: Sequence[str], train_columns: Sequence[str], seed: int
) -> tuple[list[Table], Table]:
    """Reads a table for each training file, and the held-out rows.

    Args:
        data: The run's data section.
        columns: Columns that every row needs.
        train_columns: Columns that training rows need besides, for the split over clients.
        seed: The run's seed; draws the held-out rows where no file names them.

    Raises:
        DataError: Whatever is wrong with a file or a column, or a split that leaves nothing.
    """
    test = None if data.test is None else read_table(data.test, columns)
    locations = data.client_files if data.train is None else (data.train,)
    tables = [read_table(location, [*columns, *train_columns]) for location in locations]
    if test is not None:
        return tables, test
    assert data.test_fraction is not None
    splits = [_hold_out(table, data.test_fraction, seed) for table in tables]
    return [kept for kept, _ in splits], concat_tables([held for _, held in splits])


def _hold_out(table: Table, fraction: float, seed: int) -> tuple[Table, Table]:
    count = round(fraction * table.num_rows)
    if not 0 < count < table.num_rows:
        raise DataError(
            f"test_fraction {fraction:g} of the {table.num_rows} rows of {table.location} leaves "
            "nothing to train on or nothing to test on; choose another"
        )
    order = np.random.default_rng(derive_seed(seed, "held_out")).permutation(table.num_rows)
    return table.take(sorted(order[count:].tolist())), table.take(sorted(order[:count].tolist()))
