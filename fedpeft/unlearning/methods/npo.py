"""Negative preference optimization (Zhang et al., 2024): a baseline."""

from fedpeft.unlearning.methods.by_objective import ByObjective


class Npo(ByObjective):
    """Ascent whose steps shrink as a row is forgotten, and descent on rows that stay."""

    name = "npo"
