"""The classes of a classification run, defined by the public held-out set.

A client's own labels are private: were the classes taken from them, the mere size of the
classifier would say who holds what. The held-out set is public, so it alone defines them.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from fedpeft.errors import DataError
from fedpeft.models.table import Table, did_you_mean, listed


@dataclass(frozen=True)
class LabelSpace:
    """Names of the classes; a name's index is the class id.

    Attributes:
        names: At least two different names, in class order.

    Raises:
        DataError: fewer than two names, or a name twice.
    """

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.names) < 2:
            raise DataError(
                f"classification needs at least two labels, got {listed(self.names)}; "
                "check label_column and the held-out set"
            )
        if len(set(self.names)) != len(self.names):
            raise DataError(f"the labels {listed(self.names)} hold a name twice; remove one")

    @classmethod
    def from_test(cls, table: Table, label_column: str) -> "LabelSpace":
        """Labels that occur in the public held-out set, sorted.

        Whole numbers and booleans become their `str`. Where every label is a whole number, be
        it 10 or "10", they are sorted as numbers, and as text otherwise; so a CSV and a JSONL
        file with the same labels give the same space.

        Raises:
            DataError: no such column, fewer than two labels, or a label that is a float, null,
                a list or an object (the message names the row's place).
        """
        names = set(table.categories(label_column))
        if len(names) < 2:
            raise DataError(
                f"{table.location}: column '{label_column}' should hold at least two labels, but "
                f"holds {listed(names)}; check label_column and the held-out set"
            )
        if all(_is_canonical_int(name) for name in names):
            return cls(tuple(sorted(names, key=int)))
        return cls(tuple(sorted(names)))

    @property
    def num_labels(self) -> int:
        """Number of classes, at least 2."""
        return len(self.names)

    def encode(self, table: Table, label_column: str) -> list[int]:
        """Class ids of a table's rows, each in [0, num_labels).

        Raises:
            DataError: no such column, a label of a kind that cannot be one, or a label that the
                held-out set lacks; the message names the row's place and the nearest label.
        """
        ids = {name: index for index, name in enumerate(self.names)}
        labels = table.categories(label_column)
        for row, label in enumerate(labels):
            if label not in ids:
                raise DataError(
                    f"{table.locate(row)}: the label '{label}' does not occur in the held-out "
                    f"set, whose labels are {listed(self.names)}; correct the label, or "
                    f"add rows with it to the held-out set{did_you_mean(label, self.names)}"
                )
        return [ids[label] for label in labels]


def majority_share(encoded: Sequence[int]) -> float:
    """Share of the most frequent class, in (0, 1]: the accuracy of always guessing it.

    Raises:
        ValueError: there are no labels.
    """
    if not encoded:
        raise ValueError("expected at least one label, got none")
    return max(Counter(encoded).values()) / len(encoded)


def _is_canonical_int(name: str) -> bool:
    digits = name.removeprefix("-")
    return digits.isascii() and digits.isdigit() and name == str(int(name))
