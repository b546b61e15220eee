"""The next token from its logits. Legend: V vocabulary."""

import os
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen, and when that ends.

    Attributes:
        max_tokens: At most so many.
        temperature: 0: always the most probable token.
        top_p: Only of the fewest tokens whose probabilities sum to this.
        seed: The same one gives the same answer; None: each its own.
        stop: An answer ends before any of these texts.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(kw_only=True)
class Sampler:
    """Draws the tokens of one answer, whatever else is in the batch."""

    sampling: Sampling
    _generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        seed = self.sampling.seed
        drawn = int.from_bytes(os.urandom(8), "big") >> 1
        self._generator = torch.Generator().manual_seed(drawn if seed is None else seed)

    def draw(self, logits_V: Tensor) -> int:
        """Returns a token."""
        if self.sampling.temperature == 0:
            return int(logits_V.argmax())
        probs_V = (logits_V.double() / self.sampling.temperature).softmax(0)
        if self.sampling.top_p < 1:
            ordered_V, tokens_V = probs_V.sort(descending=True, stable=True)
            # A token is kept while those before it do not reach top_p: the first one always is.
            kept_V = ordered_V.cumsum(0) - ordered_V < self.sampling.top_p
            chosen = torch.multinomial(ordered_V * kept_V, 1, generator=self._generator)
            return int(tokens_V[chosen])
        return int(torch.multinomial(probs_V, 1, generator=self._generator))
