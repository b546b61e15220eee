"""Preference objectives without a preferred answer, with cross-entropy on the rows that stay.

NPO: Zhang et al., "Negative Preference Optimization: From Catastrophic Collapse to Effective
Unlearning", 2024. SimNPO: Fan et al., "Simplicity Prevails: Rethinking Negative Preference
Optimization for LLM Unlearning", 2024.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from fedpeft.unlearning.objectives.answers import Answers


@dataclass(frozen=True, kw_only=True)
class Npo:
    """-2/beta · log sigmoid(-beta · log(p / p_before)) on rows to be forgotten.

    A row's p is that of its whole answer. As beta goes to zero the gradient becomes ascent's.
    """

    beta: float = 0.1
    name = "npo"
    keeps = True
    remembers = True

    def forget_terms(self, forget: Answers) -> Tensor:
        """See `Objective.forget_terms`."""
        ratio_N = forget.sums(forget.reference_losses() - forget.token_losses())
        return -2 / self.beta * functional.logsigmoid(-self.beta * ratio_N)

    def retain_terms(self, retain: Answers) -> Tensor:
        """See `Objective.retain_terms`."""
        return retain.token_losses()


@dataclass(frozen=True, kw_only=True)
class SimNpo:
    """-2/beta · log sigmoid(-beta · mean log p - gamma) on rows to be forgotten.

    A row's mean is over its tokens: long answers weigh no more, and no reference is needed.
    """

    beta: float = 2.5
    gamma: float = 0.0
    name = "simnpo"
    keeps = True
    remembers = False

    def forget_terms(self, forget: Answers) -> Tensor:
        """See `Objective.forget_terms`."""
        mean_loss_N = forget.means(forget.token_losses())
        return -2 / self.beta * functional.logsigmoid(self.beta * mean_loss_N - self.gamma)

    def retain_terms(self, retain: Answers) -> Tensor:
        """See `Objective.retain_terms`."""
        return retain.token_losses()
