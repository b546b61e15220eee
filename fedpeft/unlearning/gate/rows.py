"""What the gate measures on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fedpeft.models.data_config import DataConfig
from fedpeft.models.dataset import Dataset
from fedpeft.models.table import Table

Kept = Literal["forget", "retain", "held_out"]

PARAPHRASED, PERTURBED = "paraphrased_answer", "perturbed_answer"
"""TOFU's columns: the right answer in other words, and wrong ones."""

Encode = Callable[[Table], Dataset]


@dataclass(frozen=True, kw_only=True)
class TruthRows:
    """Other answers to the same questions.

    Attributes:
        paraphrased: The right answer in other words, one a row.
        wrong: All wrong answers of all rows.
        num_wrong: How many of them belong to each row.
    """

    paraphrased: Dataset
    wrong: Dataset
    num_wrong: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class GateRows:
    """Rows of the three kinds.

    Attributes:
        sets: Tokenized: rows to be forgotten, rows that stay, rows that nobody trained on. One of
            the last two may be empty.
        asked: Whether each row is a question and its answer.
        truth: By kind, where rows have TOFU's columns.
    """

    sets: Mapping[Kept, Dataset]
    asked: bool
    truth: Mapping[Kept, TruthRows]


def gate_rows(tables: Mapping[Kept, Table], data: DataConfig, encode: Encode) -> GateRows:
    """Tokenizes all that is measured.

    Args:
        tables: By kind; a kind without rows may be missing.
        data: Names the columns.
        encode: Tokenizes a table for the task.

    Raises:
        DataError: If a column is missing or a label is unknown.
    """
    asked = data.answer_column if data.question_column is not None else None
    return GateRows(
        sets={kind: encode(table) for kind, table in tables.items() if table.num_rows},
        asked=asked is not None,
        truth={
            kind: _truth(table, asked, encode)
            for kind, table in tables.items()
            if asked is not None and _has_truth(table)
        },
    )


def _has_truth(table: Table) -> bool:
    """Whether every row has the right answer in other words, and wrong answers."""
    if not table.num_rows or not {PARAPHRASED, PERTURBED} <= set(table.columns):
        return False
    return all(isinstance(text, str) for text in table.column(PARAPHRASED)) and all(
        isinstance(wrong, Sequence) and wrong and not isinstance(wrong, str)
        for wrong in table.column(PERTURBED)
    )


def _truth(table: Table, answer: str, encode: Encode) -> TruthRows:
    wrong = [[str(text) for text in some] for some in table.column(PERTURBED)]
    repeated = table.take([row for row, some in enumerate(wrong) for _ in some])
    return TruthRows(
        paraphrased=encode(_answered(table, answer, table.column(PARAPHRASED))),
        wrong=encode(_answered(repeated, answer, [text for some in wrong for text in some])),
        num_wrong=tuple(len(some) for some in wrong),
    )


def _answered(table: Table, column: str, answers: Sequence[Any]) -> Table:
    columns = dict(table.columns) | {column: list(answers)}
    return Table(table.location, columns, table.places)
