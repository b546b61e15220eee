"""What an objective sees of a batch: its answers, token by token.

Legend: N rows, T tokens, K answer tokens of all rows together, V vocabulary, C classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fedpeft.errors import DataError
from fedpeft.models.dataset import Batch


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The tokens of a batch that carry loss.

    Attributes:
        logits_KV: What the model says before each of them.
        targets_K: What they are.
        rows_K: Their rows, 0 to N - 1.
        num_rows: N.
        reference_KV: What the model said before unlearning began, where an objective needs it.
    """

    logits_KV: Tensor
    targets_K: Tensor
    rows_K: Tensor
    num_rows: int
    reference_KV: Tensor | None = None

    def token_losses(self) -> Tensor:
        """Returns -log p of each token, shape (K,)."""
        return functional.cross_entropy(self.logits_KV, self.targets_K, reduction="none")

    def reference_losses(self) -> Tensor:
        """Returns -log p of each token before unlearning began, shape (K,)."""
        assert self.reference_KV is not None
        return functional.cross_entropy(self.reference_KV, self.targets_K, reduction="none")

    def sums(self, values_K: Tensor) -> Tensor:
        """Returns the sum over each row's tokens, shape (N,)."""
        return values_K.new_zeros(self.num_rows).index_add(0, self.rows_K, values_K)

    def means(self, values_K: Tensor) -> Tensor:
        """Returns the mean over each row's tokens, shape (N,)."""
        return self.sums(values_K) / self.sums(torch.ones_like(values_K))


def answers_of(logits: Tensor, batch: Batch, reference: Tensor | None = None) -> Answers:
    """Picks the answers' tokens out of a batch; a classifier answers each row with one class.

    Args:
        logits: Of a language model, shape (N, T, V), or of a classifier, (N, C).
        batch: Where they come from.
        reference: The same of the model before unlearning began.

    Raises:
        DataError: If a row has no token that carries loss.
    """
    if logits.ndim == 2:
        return Answers(
            logits_KV=logits.float(),
            targets_K=batch.targets_N,
            rows_K=torch.arange(batch.num_rows, device=logits.device),
            num_rows=batch.num_rows,
            reference_KV=None if reference is None else reference.float(),
        )
    labels_NT = batch.labels_NT()[:, 1:]
    counted_NT = labels_NT >= 0
    without = (~counted_NT.any(1)).sum()
    if without:
        raise DataError(f"{int(without)} rows have no answer: nothing to forget, nothing to keep")
    return Answers(
        logits_KV=logits[:, :-1][counted_NT].float(),
        targets_K=labels_NT[counted_NT],
        rows_K=counted_NT.nonzero()[:, 0],
        num_rows=batch.num_rows,
        reference_KV=None if reference is None else reference[:, :-1][counted_NT].float(),
    )
