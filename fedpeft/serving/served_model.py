"""The base model that answers, and its forward passes.

Legend: N rows, T tokens, E different ends of rows, V vocabulary, C classes.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from fedpeft.adapters.linear import is_linear, weight_of
from fedpeft.devices import to_device
from fedpeft.errors import ModelError
from fedpeft.federated.adapted_model import device_of
from fedpeft.models.base_model import load_base_model, load_tokenizer
from fedpeft.models.dataset import Dataset, collate
from fedpeft.models.model_config import ModelConfig
from fedpeft.models.tasks import CausalLanguageModel, SequenceClassifier
from fedpeft.serving.bank import AdapterBank
from fedpeft.serving.config import Precision, Task
from fedpeft.serving.row_cache import RowCache
from fedpeft.types import tensor_digest
from fedpeft.unlearning.metrics.rounded_weights import Bits, round_weight

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LONGEST = 2048
_LONGEST_POSSIBLE = 2**31
# Relative to the largest logit; a batch of other rows is summed in another order.
_SAME: dict[str, float] = {"float32": 1e-4, "int8": 1e-4, "int4": 1e-4, "bfloat16": 5e-2}
_BITS: dict[str, Bits] = {"int8": 8, "int4": 4}


class ServedModel:
    """A base model, its tokenizer, and the adapters on it. One thread runs it.

    Attributes:
        digest: Of the base model as it was loaded, before it was rounded.
        num_tokens: That it knows.
        longest: A row's tokens, at most.
        end_ids: Tokens that end an answer.
    """

    def __init__(
        self,
        name: str,
        task: Task,
        *,
        revision: str | None = None,
        precision: Precision = "float32",
        device: Literal["auto", "cpu", "cuda"] = "auto",
        longest: int = _LONGEST,
    ) -> None:
        """Loads it.

        Args:
            name: A folder, 'package:<distribution>' or a hub id.
            task: What its adapters are for.
            revision: Of a hub id.
            precision: Of the base model's weights. In int8 and int4 they are rounded as
                `rounded_weights` does it and computed with in float32: this shows what rounding
                does to answers, and saves no memory. Adapters and heads are always float32.
            device: Where to run.
            longest: A row's tokens, at most; the model may take fewer.

        Raises:
            ModelError: If it cannot be loaded, or is of a kind that is not served.
        """
        config = ModelConfig(name=name, task=task, revision=revision, device=device)
        base = load_base_model(config)
        self.task: Task = task
        self.name = name
        self.precision: Precision = precision
        self.digest = tensor_digest(base.state_dict())
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(config)
        if precision in _BITS:
            _round(base, _BITS[precision])
        elif precision == "bfloat16":
            base.to(torch.bfloat16)
        base.to(device_of(device))
        self._base = base
        positions = getattr(base.config, "max_position_embeddings", None)
        self.num_tokens = int(getattr(base.config, "vocab_size", len(self.tokenizer)))
        self.longest = min(longest, positions if isinstance(positions, int) else longest)
        self._task_model: SequenceClassifier | CausalLanguageModel
        if task == "classification":
            classifier = SequenceClassifier(base, 1).eval().requires_grad_(False)
            classifier.head.to(device_of(device))
            self._task_model, head = classifier, classifier.head
        else:
            self._task_model, head = CausalLanguageModel(base).eval(), None
        self.bank = AdapterBank(base, head)
        if task == "causal-lm":
            self.longest = min(self.longest, _window(base, name))
            self._check_cache()
        self.end_ids = _end_ids(base, self.tokenizer)

    def _check_cache(self) -> None:
        """Not every architecture takes positions and masks by row; what does not says other things.

        Raises:
            ModelError: If a row says something else out of the cache than in one piece.
        """
        rows = [[(7 * n + 3 * t) % self.num_tokens for t in range(4 + n)] for n in range(2)]
        expected = [logits_TV[-1] for logits_TV in self.logits(rows)]
        try:
            found_NV = self._through_cache(rows)
        except Exception as error:
            raise ModelError(
                f"{self.name} cannot be served: it does not take positions and masks by row "
                f"({error})"
            ) from error
        for found_V, expected_V in zip(found_NV, expected, strict=True):
            apart = float((found_V - expected_V).abs().max() / expected_V.abs().max())
            if not apart <= _SAME[self.precision]:
                raise ModelError(
                    f"{self.name} cannot be served: with its keys and values in a cache it says "
                    f"something else (by {apart:.2g} of the largest logit)"
                )

    def _through_cache(self, rows: list[list[int]]) -> Tensor:
        """All tokens but each row's last, and then that one."""
        cache, lengths_N = RowCache(len(rows)), torch.tensor([len(row) - 1 for row in rows])
        longest = max(len(row) for row in rows) - 1
        ids_NT = torch.tensor([row[:-1] + [0] * (longest + 1 - len(row)) for row in rows])
        positions_NT = torch.arange(longest).expand_as(ids_NT)
        self.next_logits(ids_NT, positions_NT, lengths_N - 1, cache, 0)
        last_N1 = torch.tensor([row[-1:] for row in rows])
        zero_N = torch.zeros_like(lengths_N)
        return self.next_logits(last_N1, lengths_N.unsqueeze(1), zero_N, cache, 0)

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return next(self._base.parameters()).device

    def logits(self, rows: Sequence[Sequence[int]]) -> list[Tensor]:
        """Returns each row's logits, of shape (T, V) or (C,); `bank` says through which adapter."""
        dataset = Dataset(input_ids=rows, targets=[1] * len(rows), pad_id=0)
        with torch.inference_mode():
            batch = collate(dataset, range(len(rows)), self.device)
            out = self._task_model.logits(batch).float().cpu()
        if self.task == "classification":
            return list(out)
        return [logits_TV[: len(row)] for logits_TV, row in zip(out, rows, strict=True)]

    def next_logits(
        self, ids_NT: Tensor, positions_NT: Tensor, last_N: Tensor, cache: RowCache, first: int
    ) -> Tensor:
        """Runs new tokens of rows whose earlier ones are in the cache.

        Args:
            ids_NT: Tokens; those that fill a row up stand at its end.
            positions_NT: Of each token in its row.
            last_N: Index of each row's last real token.
            cache: Holds the rows in slots from `first` on.
            first: Slot of the first row.

        Returns:
            Logits of each row's next token, float32 on the CPU, shape (N, V).
        """
        with torch.inference_mode():
            num_keys = int(positions_NT.max()) + 1
            positions_NT = to_device(positions_NT, self.device)
            visible = cache.begin(first, positions_NT, num_keys)
            # Added to the scores: attention that was written out takes no bool.
            mask = torch.zeros(visible.shape, dtype=self._dtype, device=self.device)
            mask.masked_fill_(~visible, torch.finfo(self._dtype).min)
            # A vocabulary is large: logits are made where some row ends, not at every token.
            ends_E = torch.tensor(sorted(set(last_N.tolist())))
            end_of_N = torch.searchsorted(ends_E, last_N)
            out = self._base(
                input_ids=to_device(ids_NT, self.device),
                position_ids=positions_NT,
                attention_mask=mask,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=to_device(ends_E, self.device),
            )
            rows_N = torch.arange(len(last_N), device=self.device)
            logits: Tensor = out.logits[rows_N, to_device(end_of_N, self.device)].float().cpu()
        return logits

    @property
    def _dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32


def _round(base: nn.Module, bits: Bits) -> None:
    """As `rounded_weights`, for good."""
    tied = {id(m.weight) for m in base.modules() if isinstance(m, nn.Embedding)}
    with torch.no_grad():
        for module in base.modules():
            if is_linear(module) and id(module.weight) not in tied:
                weight_OI = weight_of(module)
                weight_OI.copy_(round_weight(weight_OI, bits))


def _window(base: nn.Module, name: str) -> int:
    """Up to which length every layer sees all tokens: further back our cache knows no window."""
    config = base.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if not kinds <= {"full_attention", "sliding_attention"}:
        raise ModelError(
            f"{name} cannot be served: it has layers of {', '.join(sorted(kinds))}; expected "
            "attention over keys and values"
        )
    window = getattr(config, "sliding_window", None)
    slides = "sliding_attention" in kinds or getattr(config, "layer_types", None) is None
    return window if isinstance(window, int) and slides else _LONGEST_POSSIBLE


def _end_ids(base: nn.Module, tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    found = {tokenizer.eos_token_id}
    said = getattr(getattr(base, "generation_config", None), "eos_token_id", None)
    found |= set(said) if isinstance(said, list) else {said}
    return frozenset(int(token) for token in found if token is not None)
