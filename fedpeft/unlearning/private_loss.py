"""LoKU's objective row by row, so that one row moves its own gradient and nobody else's.

Legend: N rows, T tokens, K tokens that carry loss, V vocabulary, C classes.
"""

import torch
from torch import Tensor
from torch.nn import functional

from fedpeft.models.dataset import Batch
from fedpeft.unlearning.objectives.inverted_hinge import inverted_hinge


def row_losses(logits: Tensor, batch: Batch, forget_N: Tensor, retain_weight: float) -> Tensor:
    """Returns a loss a row, shape (N,): the mean over its own tokens; 0 where none carries loss.

    Args:
        logits: Of a language model, shape (N, T, V), or of a classifier, (N, C).
        batch: Where they come from.
        forget_N: Rows that get the inverted hinge; the others get cross-entropy.
        retain_weight: What that is multiplied by. Public.
    """
    if logits.ndim == 2:
        labels, logits = batch.targets_N.unsqueeze(1), logits.unsqueeze(1)
    else:
        labels, logits = batch.labels_NT()[:, 1:], logits[:, :-1]
    counted = labels >= 0
    rows_K = counted.nonzero()[:, 0]
    logits_KV, targets_K = logits[counted].float(), labels[counted]
    losses_K = torch.where(
        forget_N[rows_K],
        inverted_hinge(logits_KV, targets_K),
        retain_weight * functional.cross_entropy(logits_KV, targets_K, reduction="none"),
    )
    sums_N = losses_K.new_zeros(len(forget_N)).index_add(0, rows_K, losses_K)
    return sums_N / counted.sum(1).clamp(min=1)
