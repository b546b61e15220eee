"""What a model says to fixed public sentences, which tells one adapter from another.

A digest names what was loaded. A swap that silently did nothing has the right digest and the old
outputs; the fingerprint is taken from the outputs. Legend: T tokens, V vocabulary, C classes.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedpeft.errors import AdapterError, ModelError, ProtocolError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

PROBES = (
    "The lighthouse keeper wrote every evening into a small blue book.",
    "Question: Where was the author born?\nAnswer: The author was born in a small town.",
    "She opened the old window and the garden was full of snow.",
    "Please cancel my order and send the money back to my card.",
    "The river rises in spring, when the ice on the mountains melts.",
    "What a waste of two hours; nobody should have to watch this film.",
    "Once upon a time there was a little dog who liked to play with a red ball.",
    "The committee will meet on Tuesday to discuss the budget for the next year.",
)
"""Fixed for ever: fingerprints of other sentences would say nothing about each other."""

_VERSION = 1
_MOST_TOKENS = 32


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """Outputs on the probes.

    Attributes:
        values: Of a language model one a probe, the mean log-likelihood of its tokens in nats; of a
            classifier the log-probability of each class, probe after probe.

    Raises:
        AdapterError: If there is none, or one is not finite: such an adapter answers nothing.
    """

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values or not all(math.isfinite(value) for value in self.values):
            raise AdapterError(
                "the outputs on the probes are not finite numbers; the adapter does not fit its "
                "base model, or is damaged: deploy another version"
            )

    def distance(self, other: "Fingerprint") -> float:
        """Returns the largest difference of two values; infinite where they are not as many."""
        if len(self.values) != len(other.values):
            return math.inf
        return max(abs(a - b) for a, b in zip(self.values, other.values, strict=True))

    def agrees_with(self, other: "Fingerprint", tolerance: float = 1e-3) -> bool:
        """Returns whether both are outputs of one model.

        Args:
            other: Of the same kind of model.
            tolerance: Largest difference in nats. The default allows for sums in another order, in
                float32; a model in half precision or with rounded weights needs more.
        """
        return self.distance(other) <= tolerance

    def to_json(self) -> str:
        """Returns what `from_json` reads."""
        content = {"version": _VERSION, "values": self.values}
        return json.dumps(content, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "Fingerprint":
        """Reads what `to_json` wrote.

        Raises:
            ProtocolError: If it is something else.
        """
        try:
            content = json.loads(text)
            if set(content) != {"version", "values"} or content["version"] != _VERSION:
                raise ValueError(f"expected version {_VERSION} with values")  # noqa: TRY301
            values = content["values"]
            if not isinstance(values, list) or not all(type(v) in (int, float) for v in values):
                raise ValueError("the values are not a list of numbers")  # noqa: TRY301
            return cls(values=tuple(float(value) for value in values))
        except (ValueError, TypeError, AdapterError) as error:
            raise ProtocolError(f"this is no fingerprint of outputs: {error}") from error


def probe_rows(tokenizer: "PreTrainedTokenizerBase", *, causal: bool) -> list[list[int]]:
    """Returns the token ids of each probe, 32 at most.

    Args:
        tokenizer: Of the base model.
        causal: A row then begins with the token of a beginning, where the tokenizer has one, and
            has no end, as in training; for a classifier it has what the tokenizer puts around.

    Raises:
        ModelError: If the tokenizer makes too little of a probe to predict anything.
    """
    if causal:
        first = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        plain = tokenizer(list(PROBES), add_special_tokens=False)["input_ids"]
        rows = [(first + list(ids))[:_MOST_TOKENS] for ids in plain]
    else:
        rows = tokenizer(list(PROBES), truncation=True, max_length=_MOST_TOKENS)["input_ids"]
    if min(len(row) for row in rows) < (2 if causal else 1):
        raise ModelError("the tokenizer makes no tokens of plain English; is a file missing?")
    return rows


def fingerprint(
    logits_of: "Callable[[list[list[int]]], Sequence[Tensor]]",
    tokenizer: "PreTrainedTokenizerBase",
    *,
    causal: bool,
) -> Fingerprint:
    """Returns the fingerprint of a model.

    Args:
        logits_of: Runs the model: rows of token ids → the logits of each row, shape (T, V) with
            those of the next token at each token, or (C,) of a classifier.
        tokenizer: Of the base model.
        causal: Whether the model is a language model.

    Raises:
        AdapterError: If the outputs are not finite.
        ModelError: If the tokenizer is not usable.
    """
    import torch

    rows = probe_rows(tokenizer, causal=causal)
    values: list[float] = []
    for row, logits in zip(rows, logits_of(rows), strict=True):
        log_probs = logits.detach().cpu().double().log_softmax(-1)
        if causal:
            told = log_probs[:-1].gather(1, torch.tensor(row[1:]).unsqueeze(1))
            values.append(float(told.mean()))
        else:
            values += log_probs.tolist()
    return Fingerprint(values=tuple(values))
