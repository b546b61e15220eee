"""Objectives, behind `contract.Objective`."""

from fedpeft.unlearning.objectives.contract import Objective
from fedpeft.unlearning.objectives.gradient_ascent import (
    GradientAscent,
    GradientAscentKl,
    GradientDifference,
)
from fedpeft.unlearning.objectives.inverted_hinge import InvertedHinge
from fedpeft.unlearning.objectives.preference import Npo, SimNpo

OBJECTIVES: dict[str, Objective] = {
    objective.name: objective
    for objective in (
        InvertedHinge(),
        GradientAscent(),
        GradientDifference(),
        GradientAscentKl(),
        Npo(),
        SimNpo(),
    )
}

__all__ = ["OBJECTIVES", "Objective"]
