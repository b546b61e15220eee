"""Simple negative preference optimization (Fan et al., 2024): a baseline."""

from fedpeft.unlearning.methods.by_objective import ByObjective


class SimNpo(ByObjective):
    """NPO by mean loss and without a reference."""

    name = "simnpo"
