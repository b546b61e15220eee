"""LoKU: inverted hinge on rows to be forgotten, cross-entropy on others, from a FILA start.

Cha et al., "Towards Robust and Parameter-Efficient Knowledge Unlearning for LLMs", ICLR 2025.
"""

from fedpeft.unlearning.methods.by_objective import ByObjective


class Loku(ByObjective):
    """The default: bounded steps, and a start in what matters to the rows to be forgotten."""

    name = "loku"
