"""Removal methods, behind `contract.Method`."""

from fedpeft.unlearning.methods.contract import Claim, Method, Removal
from fedpeft.unlearning.methods.gradient_ascent import GradientAscent
from fedpeft.unlearning.methods.gradient_difference import GradientDifference
from fedpeft.unlearning.methods.kl import Kl
from fedpeft.unlearning.methods.loku import Loku
from fedpeft.unlearning.methods.none import Nothing
from fedpeft.unlearning.methods.npo import Npo
from fedpeft.unlearning.methods.refuse import Refuse
from fedpeft.unlearning.methods.retrain import Retrain
from fedpeft.unlearning.methods.simnpo import SimNpo

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Loku(),
        Retrain(),
        GradientAscent(),
        GradientDifference(),
        Kl(),
        Npo(),
        SimNpo(),
        Nothing(),
        Refuse(),
    )
}
REQUESTABLE: tuple[str, ...] = tuple(name for name, m in METHODS.items() if m.requestable)

__all__ = ["METHODS", "REQUESTABLE", "Claim", "Method", "Removal"]
