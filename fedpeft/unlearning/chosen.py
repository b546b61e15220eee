"""A client's rows, divided into those to be forgotten and those that stay, as a job gets them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedpeft.federated.assembly import needed_columns
from fedpeft.models.data_config import DataConfig
from fedpeft.models.model_config import ModelConfig
from fedpeft.models.table import Table
from fedpeft.unlearning.gate.rows import PARAPHRASED, PERTURBED
from fedpeft.unlearning.job_rows import job_tables
from fedpeft.unlearning.records import JobRows, rows_of


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A client's rows, divided; `held_out` are rows that nobody trained on, where there are any."""

    forget: Table
    retain: Table
    held_out: Table | None = None

    def job_rows(
        self,
        model: ModelConfig,
        data: DataConfig,
        *,
        num_retain: int,
        seed: int,
        checked: bool = True,
    ) -> JobRows:
        """Returns what a job gets, checked as the job itself does.

        Only the columns that the task reads, and those that only the gate reads, are in it.

        Args:
            model: Of the run that made the adapter.
            data: Of that run.
            num_retain: Rows that stay, at most; drawn at random.
            seed: Draws them.
            checked: False where no job will use them: retraining needs no rows that stay.

        Raises:
            DataError: If a column or a value is missing, too few rows stay, or a row is to be
                forgotten and is among the others too.
        """
        needed = needed_columns(model, data)

        def sent(table: Table) -> list[dict[str, Any]]:
            beside = [name for name in (PARAPHRASED, PERTURBED) if name in table.columns]
            return rows_of(in_columns(table, [*needed, *beside]))

        # A row without a value taught nothing, so it cannot show what stayed either.
        columns = [self.retain.column(name) for name in needed]
        whole = [n for n, row in enumerate(zip(*columns, strict=True)) if None not in row]
        retain = self.retain.take(whole)
        if retain.num_rows > num_retain:
            drawn = np.random.default_rng(seed).choice(retain.num_rows, num_retain, replace=False)
            retain = retain.take(sorted(drawn.tolist()))
        rows = JobRows(
            forget=sent(self.forget),
            retain=sent(retain),
            held_out=sent(self.held_out) if self.held_out is not None else [],
        )
        if checked:
            job_tables(rows, model, data, check_share=0.5, seed=0)
        return rows


def in_columns(table: Table, columns: Sequence[str]) -> Table:
    """Returns the same rows in these columns alone.

    Raises:
        DataError: If there is no such column.
    """
    places = tuple(table.locate(row) for row in range(table.num_rows))
    return Table(table.location, {name: table.column(name) for name in columns}, places)
