"""What a model shows of rows at one precision, row by row.

Legend: N rows, T tokens, V vocabulary, C classes, K answer tokens of all rows together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedpeft.models.dataset import Dataset, collate, physical_batches
from fedpeft.models.tasks import CausalLanguageModel, Precision, SequenceClassifier
from fedpeft.unlearning.gate.config import GateConfig, ServedPrecision
from fedpeft.unlearning.gate.precision import served_at
from fedpeft.unlearning.gate.rows import GateRows, Kept, TruthRows
from fedpeft.unlearning.metrics.continuations import continuations
from fedpeft.unlearning.metrics.extraction import overlap, prefix_lengths
from fedpeft.unlearning.metrics.truth_ratio import truth_ratios
from fedpeft.unlearning.objectives.answers import answers_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Values = NDArray[np.float64]
TaskModel = SequenceClassifier | CausalLanguageModel


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One value a row, by kind of row, each of shape (N,).

    Attributes:
        losses: Mean over the row's answer tokens, or of its class.
        accuracy: Part of the answer's tokens that are the most probable ones (MA); of a
            classifier 1 where the class is right.
        confidence: exp(-loss): of a classifier the probability of the class.
        extraction: EL_n; rows whose answer is shorter than n tokens are left out.
        rouge: ROUGE-L recall of the greedy answer, both cut where the row is.
        truth: Truth ratios.
    """

    losses: Mapping[Kept, Values]
    accuracy: Mapping[Kept, Values]
    extraction: Mapping[Kept, Values] = field(default_factory=dict)
    rouge: Mapping[Kept, Values] = field(default_factory=dict)
    truth: Mapping[Kept, Values] = field(default_factory=dict)

    @property
    def confidence(self) -> Mapping[Kept, Values]:
        """See the class."""
        return {kind: np.exp(-losses) for kind, losses in self.losses.items()}


@dataclass(frozen=True, kw_only=True)
class Look:
    """How a model is looked at.

    Attributes:
        rows: What is measured on.
        tokenizer: Of the base model.
        config: Lengths and numbers.
        max_tokens: Bound on the padded tokens of a batch.
    """

    rows: GateRows
    tokenizer: "PreTrainedTokenizerBase"
    config: GateConfig
    max_tokens: int

    def at(
        self,
        model: TaskModel,
        precision: ServedPrecision,
        *,
        kinds: Sequence[Kept],
        extracted: Sequence[Kept] = (),
        answered: Sequence[Kept] = (),
    ) -> Shown:
        """Looks at a model with its adapter merged.

        Args:
            model: In evaluation mode.
            precision: At which it computes meanwhile.
            kinds: Rows that it is asked for the losses of.
            extracted: Of a language model, rows that it is made to continue.
            answered: Of a language model, rows whose questions it is made to answer.
        """
        rows = self.rows
        with served_at(model, precision) as numbers:
            found = {
                kind: _told(model, rows.sets[kind], numbers, self.max_tokens)
                for kind in kinds
                if kind in rows.sets
            }
            extraction: dict[Kept, Values] = {}
            rouge: dict[Kept, Values] = {}
            for kind in {*extracted, *answered} & found.keys():
                if isinstance(model, CausalLanguageModel):
                    some = self._continued(model, kind, found[kind], whole=kind in extracted)
                    if kind in extracted:
                        extraction[kind] = self._extraction(kind, some)
                    if rows.asked:
                        rouge[kind] = self._rouge(kind, some)
            return Shown(
                losses={kind: told.losses_N for kind, told in found.items()},
                accuracy={kind: told.accuracy_N for kind, told in found.items()},
                extraction=extraction,
                rouge=rouge,
                truth={
                    kind: self._truth(model, truth, numbers)
                    for kind, truth in rows.truth.items()
                    if kind in kinds
                },
            )

    def _continued(
        self, model: CausalLanguageModel, kind: Kept, told: "_Told", *, whole: bool
    ) -> list[dict[int, list[int]]]:
        """By row: what is said after some prefixes, the answer's first among them; the first rows.

        Greedy decoding has no memory: where the next token is the text's own, what is said after
        the prefix is that token and what is said after the prefix one longer. So only what follows
        a token that is not the text's is really generated.
        """
        dataset = self.rows.sets[kind]
        asked: dict[tuple[int, int], list[int]] = {}
        lengths_of = []
        # Held-out rows give a level alone: as many as are compared with it are enough.
        most = len(self.rows.sets["forget"]) if whole else len(dataset)
        for row, ids in enumerate(dataset.input_ids[:most]):
            first = dataset.targets[row]
            lengths = {first}
            if whole:
                some = prefix_lengths(ids, first, self.config.ngram)
                chosen = np.linspace(0, len(some) - 1, self.config.num_prefixes).round()
                lengths |= {some[int(i)] for i in chosen} if some else set()
            lengths_of.append(lengths)
            asked |= {(row, told.wrong_at(row, length)): [] for length in lengths}
        open_ = [(row, at) for row, at in asked if at < len(dataset.input_ids[row])]
        said = continuations(
            model.base,
            [dataset.input_ids[row][:at] for row, at in open_],
            [len(dataset.input_ids[row]) - at for row, at in open_],
            pad_id=dataset.pad_id,
            end_ids=[] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id],
        )
        asked |= dict(zip(open_, said, strict=True))
        return [
            {
                length: [*dataset.input_ids[row][length:at], *asked[row, at]]
                for length in sorted(lengths)
                for at in [told.wrong_at(row, length)]
            }
            for row, lengths in enumerate(lengths_of)
        ]

    def _extraction(self, kind: Kept, said: Sequence[Mapping[int, list[int]]]) -> Values:
        n, texts = self.config.ngram, self.rows.sets[kind].input_ids
        by_row = [
            [overlap(after, text[at:], n) for at, after in of_row.items() if at + n <= len(text)]
            for text, of_row in zip(texts, said, strict=False)
        ]
        return np.array([np.mean(values) for values in by_row if values], dtype=np.float64)

    def _rouge(self, kind: Kept, said: Sequence[Mapping[int, list[int]]]) -> Values:
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer(["rougeL"], use_stemmer=True)
        dataset = self.rows.sets[kind]
        pairs = [
            (self._text(ids[first:]), self._text(of_row[first]))
            for ids, first, of_row in zip(dataset.input_ids, dataset.targets, said, strict=False)
        ]
        return np.array(
            [scorer.score(true, answer)["rougeL"].recall for true, answer in pairs],
            dtype=np.float64,
        )

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def _truth(self, model: TaskModel, truth: TruthRows, numbers: Precision) -> Values:
        paraphrased_N = _told(model, truth.paraphrased, numbers, self.max_tokens).losses_N
        wrong = _told(model, truth.wrong, numbers, self.max_tokens).losses_N
        cuts = np.cumsum(truth.num_wrong)[:-1]
        return truth_ratios(paraphrased_N, np.split(wrong, cuts))


@dataclass(frozen=True, kw_only=True)
class _Told:
    """What one forward pass tells of a data set.

    Attributes:
        losses_N: See `Shown`.
        accuracy_N: See `Shown`.
        wrong: Of a language model, by row: positions of answer tokens that are not the most
            probable ones, in order.
        lengths: Of the rows, in tokens.
    """

    losses_N: Values
    accuracy_N: Values
    wrong: Sequence[Sequence[int]]
    lengths: Sequence[int]

    def wrong_at(self, row: int, length: int) -> int:
        """The first position from `length` on where the model says another token than the text."""
        return next((at for at in self.wrong[row] if at >= length), self.lengths[row])


def _told(model: TaskModel, dataset: Dataset, numbers: Precision, max_tokens: int) -> _Told:
    losses_N, accuracy_N = np.zeros(len(dataset)), np.zeros(len(dataset))
    wrong: list[list[int]] = [[] for _ in dataset.input_ids]
    device = next(model.parameters()).device
    with torch.inference_mode():
        for rows in physical_batches(dataset, range(len(dataset)), max_tokens, device):
            batch = collate(dataset, rows, device)
            answers = answers_of(model.logits(batch, numbers), batch)
            right_K = answers.logits_KV.argmax(1) == answers.targets_K
            losses_N[rows] = _numbers(answers.means(answers.token_losses()))
            accuracy_N[rows] = _numbers(answers.means(right_K.float()))
            if isinstance(model, CausalLanguageModel):
                at = [dataset.targets[row] for row in rows]
                for n, right in zip(answers.rows_K.tolist(), right_K.tolist(), strict=True):
                    if not right:
                        wrong[rows[n]].append(at[n])
                    at[n] += 1
    return _Told(
        losses_N=losses_N,
        accuracy_N=accuracy_N,
        wrong=wrong,
        lengths=[len(ids) for ids in dataset.input_ids],
    )


def _numbers(values: Tensor) -> Values:
    numbers: Values = values.double().cpu().numpy()
    return numbers
