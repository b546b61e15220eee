"""A remote client's rows, as a run's terms want them read.

A coordinator may offer any terms, and an answer that depended on the rows would tell it about them:
offer the labels "flu" and "cold", and a client that refuses has somebody with something else. So
whether rows can be read depends on their columns alone. A row that the terms cannot use (no value
in a column, a label that the run does not know) stays in the data set and its gradient is zero: it
counts, it can be drawn, it moves nothing. Its owner is told; nobody else is. The same becomes of a
row that its owner wants forgotten: the number of rows, which is public, says nothing of it.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedpeft.errors import ModelError
from fedpeft.federated.assembly import encode, needed_columns
from fedpeft.federated.terms import RunTerms
from fedpeft.models.data_config import DataConfig
from fedpeft.models.dataset import IGNORED, Dataset
from fedpeft.models.label_space import LabelSpace
from fedpeft.models.model_config import ModelConfig
from fedpeft.models.table import Table

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class ClientRows:
    """Rows of one owner.

    Attributes:
        table: The rows with all their columns.
        dataset: Their fingerprint in the owner's ledger. Which columns a row is known by is its
            owner's choice and never the coordinator's: else each choice of columns would be another
            data set, with nothing spent on it.
        columns: Those columns.
    """

    table: Table
    dataset: str
    columns: Sequence[str]

    def known_by(self) -> Iterator[dict[str, object]]:
        """Yields what each row is known by."""
        names = {name: self.table.column(name) for name in self.columns}
        return Table(self.table.location, names).records()

    @property
    def num_examples(self) -> int:
        """Number of rows, usable or not; taken as public."""
        return self.table.num_rows

    def encoded(
        self,
        terms: RunTerms,
        tokenizer: "PreTrainedTokenizerBase",
        removed: Collection[int] = (),
    ) -> tuple[Dataset, int]:
        """Returns all rows tokenized for a run, and the number of those that are not used.

        Args:
            terms: Of the run.
            tokenizer: Of its base model.
            removed: Rows that are to be forgotten; see `tombstones`.

        Raises:
            DataError: If a column is missing.
        """
        return self.encoded_as(terms.model, data_config(terms), terms.labels, tokenizer, removed)

    def encoded_as(
        self,
        model: ModelConfig,
        data: DataConfig,
        labels: Sequence[str],
        tokenizer: "PreTrainedTokenizerBase",
        removed: Collection[int] = (),
    ) -> tuple[Dataset, int]:
        """Returns all rows tokenized, and the number of those that are not used.

        Args:
            model: Its task says which columns are read.
            data: Names the columns.
            labels: In class order; empty for a language model.
            tokenizer: Of the base model.
            removed: Rows whose loss is to be zero.

        Raises:
            DataError: If a column is missing.
        """
        columns = needed_columns(model, data)
        values = [self.table.column(name) for name in columns]
        classified = model.task == "classification"
        known = set(labels) if classified else None
        gone = frozenset(removed)
        usable = [
            row
            for row, cells in enumerate(zip(*values, strict=True))
            if row not in gone and _is_usable(cells, known)
        ]
        read = Table(self.table.location, dict(zip(columns, values, strict=True))).take(usable)
        tokens: Sequence[Sequence[int]] = []
        targets: Sequence[int] = []
        if usable:
            space = LabelSpace(tuple(labels)) if classified else None
            dataset = encode(read, model, data, space, tokenizer)
            tokens, targets, pad_id = dataset.input_ids, dataset.targets, dataset.pad_id
        else:
            pad_id = 0
        input_ids: list[Sequence[int]] = [[pad_id]] * self.num_examples
        # For causal LM a target counts the leading tokens without loss: here all of one.
        all_targets = [IGNORED if classified else 1] * self.num_examples
        for row, ids, target in zip(usable, tokens, targets, strict=True):
            input_ids[row], all_targets[row] = ids, target
        encoded = Dataset(input_ids=input_ids, targets=all_targets, pad_id=pad_id)
        return encoded, self.num_examples - len(usable)


def data_config(terms: RunTerms) -> DataConfig:
    """Returns the columns of the terms as the tokenizing functions take them."""
    return DataConfig(
        test="held by the coordinator",
        text_column=terms.columns.text,
        label_column=terms.columns.label,
        question_column=terms.columns.question,
        answer_column=terms.columns.answer,
    )


def check_fits(max_length: int, base: "nn.Module", tokenizer: "PreTrainedTokenizerBase") -> None:
    """Refuses lengths at which some row could be too much for the model, whatever the rows are.

    Raises:
        ModelError: If the tokenizer has tokens that the model lacks, or `max_length` is beyond what
            it was made for.
    """
    num_tokens = base.get_input_embeddings().num_embeddings  # type: ignore[operator]
    if len(tokenizer) > num_tokens:
        raise ModelError(
            f"the tokenizer of the run's base model has {len(tokenizer)} tokens, the model only "
            f"{num_tokens}; they do not belong together"
        )
    positions = getattr(base.config, "max_position_embeddings", None)
    if isinstance(positions, int) and 0 < positions < max_length:
        raise ModelError(
            f"the run cuts rows at {max_length} tokens, but its base model was made "
            f"for {positions}; the operator sets model.max_length to at most that"
        )


def _is_usable(cells: Sequence[object], labels: set[str] | None) -> bool:
    if not all(_has_value(cell) for cell in cells):
        return False
    label = cells[-1]
    return labels is None or (isinstance(label, str | int) and label != "" and str(label) in labels)


def _has_value(cell: object) -> bool:
    if cell is None or cell != cell:  # NaN alone differs from itself
        return False
    try:
        str(cell).encode()
    except UnicodeEncodeError:  # half of a UTF-16 pair, which no tokenizer takes
        return False
    return True
