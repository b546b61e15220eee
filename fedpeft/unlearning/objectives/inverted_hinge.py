"""The inverted hinge loss of LoKU.

Cha et al., "Towards Robust and Parameter-Efficient Knowledge Unlearning for LLMs", ICLR 2025.

Legend: K tokens, V vocabulary.
"""

import torch
from torch import Tensor

from fedpeft.unlearning.objectives.answers import Answers


def inverted_hinge(logits_KV: Tensor, targets_K: Tensor) -> Tensor:
    """Returns 1 + p(target) - max over other tokens of p, shape (K,), in [0, 2].

    Lowering it takes probability from the target and gives it to the runner-up, and stops by itself
    once the target is gone: its gradient is bounded, where gradient ascent's grows without end.
    With v* the runner-up and p the softmax, the gradient by the logits is

        target   p_t (1 - p_t + p_v*)
        v*       p_v* (p_v* - p_t - 1)
        others   p_v (p_v* - p_t)

    Where two runners-up are equally probable, one of them is taken.

    Raises:
        ValueError: If there is no token beside the target, or the shapes do not fit.
    """
    if logits_KV.ndim != 2 or logits_KV.shape[1] < 2 or targets_K.shape != logits_KV.shape[:1]:
        raise ValueError(
            f"expected logits (K, V >= 2) and targets (K,), got {tuple(logits_KV.shape)} and "
            f"{tuple(targets_K.shape)}"
        )
    p_KV = torch.softmax(logits_KV, dim=1)
    targets_K1 = targets_K.unsqueeze(1)
    others_KV = p_KV.scatter(1, targets_K1, -1.0)
    runner_up_K1 = others_KV.detach().argmax(1, keepdim=True)
    return 1 + (p_KV.gather(1, targets_K1) - p_KV.gather(1, runner_up_K1)).squeeze(1)


class InvertedHinge:
    """The inverted hinge on rows to be forgotten, cross-entropy on the others."""

    name = "loku"
    keeps = True
    remembers = False

    def forget_terms(self, forget: Answers) -> Tensor:
        """See `Objective.forget_terms`."""
        return inverted_hinge(forget.logits_KV, forget.targets_K)

    def retain_terms(self, retain: Answers) -> Tensor:
        """See `Objective.retain_terms`."""
        return retain.token_losses()
