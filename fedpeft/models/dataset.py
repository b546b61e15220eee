"""Rows as token ids, and physical batches of them. Legend: N rows, T tokens."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fedpeft.devices import to_device
from fedpeft.models.data_config import DataConfig
from fedpeft.models.label_space import LabelSpace
from fedpeft.models.table import Table

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""Target of a row or token without loss."""
# What a batch costs beside its tokens: fitted to MiniLM on a CPU core (docs/LOG.md); on a GPU the
# host's work for a batch takes as long as many tokens.
_CPU_OVERHEAD_TOKENS, _GPU_OVERHEAD_TOKENS = 24, 2048


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Tokenized rows.

    Attributes:
        input_ids: Token ids of each row, none empty.
        targets: For classification the class of each row; for causal LM the number of leading
            tokens that carry no loss, at least 1 (nothing predicts the first token).
        pad_id: Token that fills a batch; it is masked everywhere.
    """

    input_ids: Sequence[Sequence[int]]
    targets: Sequence[int]
    pad_id: int

    def __len__(self) -> int:
        return len(self.input_ids)

    def take(self, rows: Iterable[int]) -> "Dataset":
        """Returns the data set of the given rows."""
        chosen = list(rows)
        return Dataset(
            input_ids=[self.input_ids[row] for row in chosen],
            targets=[self.targets[row] for row in chosen],
            pad_id=self.pad_id,
        )


def concat_datasets(datasets: Sequence[Dataset]) -> Dataset:
    """Returns the rows of all data sets in one, in order; they must share the tokenizer."""
    return Dataset(
        input_ids=[ids for dataset in datasets for ids in dataset.input_ids],
        targets=[target for dataset in datasets for target in dataset.targets],
        pad_id=datasets[0].pad_id,
    )


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One physical batch on a device.

    Attributes:
        input_ids_NT: int64.
        attention_mask_NT: int64, 1 where a token is real.
        targets_N: See `Dataset.targets`, int64.
    """

    input_ids_NT: Tensor
    attention_mask_NT: Tensor
    targets_N: Tensor

    @property
    def num_rows(self) -> int:
        """N."""
        return int(self.targets_N.shape[0])

    def labels_NT(self) -> Tensor:
        """Returns next-token labels for causal LM: -100 where no loss is taken."""
        positions_1T = torch.arange(self.input_ids_NT.shape[1], device=self.targets_N.device)
        counted_NT = positions_1T >= self.targets_N.unsqueeze(1)
        return self.input_ids_NT.where(counted_NT & (self.attention_mask_NT == 1), IGNORED)


def encode_classification(
    table: Table,
    config: DataConfig,
    labels: LabelSpace,
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
) -> Dataset:
    """Tokenizes texts and encodes their labels.

    Raises:
        DataError: If a column is missing or a label is unknown.
    """
    texts = [str(text) for text in table.column(config.text_column)]
    targets = labels.encode(table, config.label_column)
    encoded = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
    pad_id = _pad_id(tokenizer)
    # Blank text is no token at all for some tokenizers, and no model takes an empty row.
    return Dataset(input_ids=[ids or [pad_id] for ids in encoded], targets=targets, pad_id=pad_id)


def encode_causal_lm(
    table: Table, config: DataConfig, tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> Dataset:
    r"""Tokenizes texts, or questions and answers, for next-token prediction.

    A row is [bos] prompt answer [eos]. With question and answer columns the prompt is
    'Question: …\\nAnswer:' and carries no loss; otherwise there is no prompt. Where a row is longer
    than `max_length`, the answer keeps its beginning and the prompt its end.

    Raises:
        DataError: If a column is missing.
    """
    if config.question_column is not None and config.answer_column is not None:
        questions = table.column(config.question_column)
        prompts = [f"Question: {question}\nAnswer:" for question in questions]
        answers = [f" {answer}" for answer in table.column(config.answer_column)]
    else:
        answers = [str(text) for text in table.column(config.text_column)]
        prompts = [""] * len(answers)
    first = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    last = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    pad_id = _pad_id(tokenizer)
    input_ids, targets = [], []
    for prompt, answer in zip(_plain(tokenizer, prompts), _plain(tokenizer, answers), strict=True):
        answer_ids = (answer + last)[: max_length - len(first)]
        room = max_length - len(first) - len(answer_ids)
        prompt_ids = first + (prompt[-room:] if room else [])
        input_ids.append(prompt_ids + answer_ids or [pad_id])
        targets.append(max(1, len(prompt_ids)))
    return Dataset(input_ids=input_ids, targets=targets, pad_id=pad_id)


def physical_batches(
    dataset: Dataset,
    rows: Iterable[int],
    max_tokens: int,
    device: torch.device,
) -> Iterator[list[int]]:
    """Cuts rows into physical batches that cost the least.

    Rows are sorted by length, so that each batch is padded only to its own longest row. Of all ways
    to cut them, the one is taken with the fewest tokens, padding included, where each batch counts
    for some more: 24 on a CPU, 2048 elsewhere. A batch holds at most `max_tokens` tokens with
    padding, and at least one row.
    """
    overhead_tokens = _CPU_OVERHEAD_TOKENS if device.type == "cpu" else _GPU_OVERHEAD_TOKENS
    ordered = sorted(rows, key=lambda row: (len(dataset.input_ids[row]), row))
    lengths = [len(dataset.input_ids[row]) for row in ordered]
    # cost[j]: of the best way to cut the first j rows; the last of its batches begins at start[j].
    cost = np.zeros(len(ordered) + 1)
    start = np.zeros(len(ordered) + 1, dtype=np.int64)
    for end, longest in enumerate(lengths, start=1):
        first = max(0, end - max(1, max_tokens // longest))
        sizes = np.arange(end - first, 0, -1)
        costs = cost[first:end] + sizes * longest + overhead_tokens
        best = int(costs.argmin())
        cost[end], start[end] = costs[best], first + best
    cuts = [len(ordered)]
    while cuts[-1]:
        cuts.append(int(start[cuts[-1]]))
    for begin, end in itertools.pairwise(reversed(cuts)):
        yield ordered[begin:end]


def collate(dataset: Dataset, rows: Sequence[int], device: torch.device) -> Batch:
    """Pads the given rows to the longest of them, on the right."""
    longest = max(len(dataset.input_ids[row]) for row in rows)
    ids_NT = torch.full((len(rows), longest), dataset.pad_id)
    mask_NT = torch.zeros_like(ids_NT)
    for n, row in enumerate(rows):
        ids = dataset.input_ids[row]
        ids_NT[n, : len(ids)] = torch.tensor(ids)
        mask_NT[n, : len(ids)] = 1
    return Batch(
        input_ids_NT=to_device(ids_NT, device),
        attention_mask_NT=to_device(mask_NT, device),
        targets_N=to_device(torch.tensor([dataset.targets[row] for row in rows]), device),
    )


def _plain(tokenizer: "PreTrainedTokenizerBase", texts: list[str]) -> list[list[int]]:
    encoded: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return encoded


def _pad_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return int(token_id)
    return 0
