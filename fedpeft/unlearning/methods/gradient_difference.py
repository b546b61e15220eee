"""Gradient ascent against descent on rows that stay (Liu et al., 2022): a baseline."""

from fedpeft.unlearning.methods.by_objective import ByObjective


class GradientDifference(ByObjective):
    """Ascent and descent; the first has no end."""

    name = "gradient-difference"
