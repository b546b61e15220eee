"""Gradient ascent on the rows to be forgotten, alone or against descent on the others.

Maini et al., "TOFU: A Task of Fictitious Unlearning for LLMs", 2024; the difference is Liu et al.,
"Continual Learning and Private Unlearning", 2022. Ascent has no end: the loss grows as long as
steps are taken, and takes the rest of the model along.
"""

from torch import Tensor
from torch.nn import functional

from fedpeft.unlearning.objectives.answers import Answers


class GradientAscent:
    """Raises the loss of the rows to be forgotten."""

    name = "gradient-ascent"
    keeps = False
    remembers = False

    def forget_terms(self, forget: Answers) -> Tensor:
        """See `Objective.forget_terms`."""
        return -forget.token_losses()

    def retain_terms(self, retain: Answers) -> Tensor:
        """Returns none."""
        return retain.logits_KV.new_zeros(0)


class GradientDifference(GradientAscent):
    """Raises the loss of the rows to be forgotten and lowers that of the others."""

    name = "gradient-difference"
    keeps = True

    def retain_terms(self, retain: Answers) -> Tensor:
        """See `Objective.retain_terms`."""
        return retain.token_losses()


class GradientAscentKl(GradientAscent):
    """Raises the loss of the rows to be forgotten; the others are answered as before.

    The divergence is from the model before unlearning to the model now, a token.
    """

    name = "kl"
    keeps = True
    remembers = True

    def retain_terms(self, retain: Answers) -> Tensor:
        """See `Objective.retain_terms`."""
        assert retain.reference_KV is not None
        divergence_KV = functional.kl_div(
            retain.logits_KV.log_softmax(1),
            retain.reference_KV.log_softmax(1),
            reduction="none",
            log_target=True,
        )
        return divergence_KV.sum(1)
