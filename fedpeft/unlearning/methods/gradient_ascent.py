"""Gradient ascent on the rows to be forgotten (Jang et al., 2022): a baseline."""

from fedpeft.unlearning.methods.by_objective import ByObjective


class GradientAscent(ByObjective):
    """Nothing holds the rest of the model; it is there to be compared with."""

    name = "gradient-ascent"
