"""Gradient ascent, with rows that stay answered as before (Maini et al., 2024): a baseline."""

from fedpeft.unlearning.methods.by_objective import ByObjective


class Kl(ByObjective):
    """Ascent, and the divergence from the affected version on rows that stay."""

    name = "kl"
