"""The rows of TOFU that the table is made of.

forget01 and forget05 are whole (2 and 10 authors of 20 rows). What stays is a subset that two CPU
cores can hold: authors 0 to 4, or more of them. Utility is measured on 3 and 4; a method sees the
others. Authors 100 and 101 are trained on by nobody.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpeft.models.data_config import DataConfig
from fedpeft.models.dataset import Dataset, concat_datasets, encode_causal_lm
from fedpeft.models.model_config import ModelConfig
from fedpeft.models.sources import read_table
from fedpeft.models.table import Table
from fedpeft.unlearning.gate.rows import TruthRows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DATA = DataConfig(train="-", test_fraction=0.1, question_column="question", answer_column="answer")
CHECKED, HELD_OUT = (3, 4), (100, 101)
FEWEST_STAYING, MOST_STAYING = 5, 100
"""Authors that stay; utility is measured on two of them."""
NUM_LOOKED_AT = 20
"""Rows a kind that are continued, relearned and looked at along the steps."""
NUM_TRUTHS = 40
"""Rows to be forgotten whose truth ratios are taken."""
NUM_WRONG = 3
"""Wrong answers of a row, of the 3 or 5 that TOFU has."""


@dataclass(frozen=True, kw_only=True)
class Truths:
    """Rows with other answers to their questions.

    Attributes:
        rows: The rows themselves.
        others: Their other answers, right and wrong.
    """

    rows: Dataset
    others: TruthRows


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A split's rows, tokenized.

    Attributes:
        forget: All of the split.
        seen: Rows that stay and that a method may see.
        check: Rows that stay on which utility is measured.
        held_out: Rows that nobody trained on.
        few: A part of `forget`, spread over its authors.
        truths: "forget", "check", "real_authors" and "world_facts".
    """

    forget: Dataset
    seen: Dataset
    check: Dataset
    held_out: Dataset
    few: Dataset
    truths: dict[str, Truths]

    @property
    def full(self) -> Dataset:
        """What the affected version is trained on."""
        return concat_datasets([self.forget, self.seen, self.check])

    @property
    def retain(self) -> Dataset:
        """What the reference is trained on."""
        return concat_datasets([self.seen, self.check])


def read_rows(
    folder: Path,
    split: str,
    model: ModelConfig,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    num_staying: int = FEWEST_STAYING,
) -> Rows:
    """Reads and tokenizes a split, with the rows of so many authors that stay."""
    seen = [author for author in range(num_staying) if author not in CHECKED]

    def encode(table: Table) -> Dataset:
        return encode_causal_lm(table, DATA, tokenizer, model.max_length)

    def table(name: str, *more: str) -> Table:
        return read_table(str(folder / f"{name}.jsonl"), ("question", "answer", *more))

    def of_authors(authors: Collection[int]) -> Table:
        ids = full.column("author_id")
        return full.take([n for n, author in enumerate(ids) if author in authors])

    def truths(table: Table, count: int) -> Truths:
        some = table.take(_spread(table.num_rows, count))
        right = "paraphrased_answer" if "paraphrased_answer" in some.columns else "answer"
        wrong = [
            [str(text) for text in texts[:NUM_WRONG]] for texts in some.column("perturbed_answer")
        ]
        repeated = some.take([row for row, texts in enumerate(wrong) for _ in texts])
        return Truths(
            rows=encode(some),
            others=TruthRows(
                paraphrased=encode(_answered(some, some.column(right))),
                wrong=encode(_answered(repeated, [text for texts in wrong for text in texts])),
                num_wrong=tuple(map(len, wrong)),
            ),
        )

    def perturbed(name: str, rows: Table) -> Table:
        found = table(name, "paraphrased_answer", "perturbed_answer")
        asked = set(rows.column("question"))
        return found.take([n for n, q in enumerate(found.column("question")) if q in asked])

    full = table("full", "author_id")
    forget, check = table(split), of_authors(CHECKED)
    encoded = encode(forget)
    return Rows(
        forget=encoded,
        seen=encode(of_authors(seen)),
        check=encode(check),
        held_out=encode(of_authors(HELD_OUT)),
        few=encoded.take(_spread(len(encoded), NUM_LOOKED_AT)),
        truths={
            "forget": truths(perturbed("forget10_perturbed", forget), NUM_TRUTHS),
            "check": truths(perturbed("retain_perturbed", check), NUM_LOOKED_AT),
            **{
                kind: truths(table(f"{kind}_perturbed", "perturbed_answer"), NUM_LOOKED_AT)
                for kind in ("real_authors", "world_facts")
            },
        },
    )


def _spread(num_rows: int, count: int) -> list[int]:
    count = min(count, num_rows)
    return [n * num_rows // count for n in range(count)]


def _answered(table: Table, answers: Sequence[Any]) -> Table:
    columns = dict(table.columns) | {"answer": list(answers)}
    return Table(table.location, columns, table.places)
