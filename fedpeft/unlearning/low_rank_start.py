"""FILA: a low-rank start that holds what matters to the rows to be forgotten (LoKU, ICLR 2025).

Legend: I inputs, O outputs, R rank.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedpeft.errors import AdapterError

_FLOOR = 1e-5
"""Added to an importance, in units of the mean importance: the paper's 1e-5, taken absolutely, is
larger than all of F where gradients are small."""
_LEAST = 1e-6
"""A row's weight, in units of the largest; below it B would hold rounding alone."""


@dataclass(frozen=True, kw_only=True)
class LowRankStart:
    """A weight split in two: W = residual + scaling · B · A.

    Attributes:
        lora_a_RI: Shape (R, I).
        lora_b_OR: Shape (O, R).
        residual_OI: Shape (O, I); frozen beside the two factors.
    """

    lora_a_RI: Tensor
    lora_b_OR: Tensor
    residual_OI: Tensor


def relative_importance(forget_OI: Tensor, retain_OI: Tensor) -> Tensor:
    """Returns how much more a weight matters to rows to be forgotten than to the others.

    Args:
        forget_OI: Diagonal Fisher information on the rows to be forgotten: mean squared gradient.
        retain_OI: The same on rows that stay.

    Returns:
        F_forget / F_retain, shape (O, I), with a floor under the denominator that scales with it.
        Where F_retain is zero everywhere, F_forget itself.

    Raises:
        AdapterError: If an entry is negative or not finite, or the shapes differ.
    """
    if forget_OI.shape != retain_OI.shape:
        raise AdapterError(
            f"importances have shapes {tuple(forget_OI.shape)} and {tuple(retain_OI.shape)}"
        )
    for importance in (forget_OI, retain_OI):
        if not (torch.isfinite(importance).all() and (importance >= 0).all()):
            raise AdapterError("an importance is negative or not finite")
    retain = retain_OI.double()
    floor = float(_FLOOR * retain.mean()) or 1.0
    return forget_OI.double() / (retain + floor)


def low_rank_start(
    weight_OI: Tensor, importance_OI: Tensor, rank: int, scaling: float
) -> LowRankStart:
    """Splits off the best approximation of rank `rank`, with rows weighted by their importance.

    With w_i the square root of row i's total importance, B·A is the exact minimiser of
    || diag(w) (W - scaling · B · A) ||_F over that rank, by the SVD of diag(w) W: a truncated
    randomized one without oversampling, as published, loses up to a fifth of the energy. A row of
    no importance takes no part, and stays whole in the residual; where no row has any, all count
    alike.

    Raises:
        AdapterError: If the rank does not fit, or the weight is not finite.
    """
    num_rows, num_columns = weight_OI.shape
    if not 1 <= rank <= min(num_rows, num_columns):
        raise AdapterError(f"rank {rank} does not fit a weight of {num_rows} x {num_columns}")
    if not torch.isfinite(weight_OI).all():
        raise AdapterError("the weight holds NaN or infinite values")
    weight = weight_OI.double()
    w_O = importance_OI.double().sum(1).sqrt()
    largest = float(w_O.max())
    w_O = w_O / largest if largest > 0 else torch.ones_like(w_O)
    w_O = torch.where(w_O < _LEAST, 0.0, w_O)
    left_OK, s_K, right_KI = torch.linalg.svd(w_O.unsqueeze(1) * weight, full_matrices=False)
    root_R = (s_K[:rank] / scaling).sqrt()
    lora_a_RI = (root_R.unsqueeze(1) * right_KI[:rank]).float()
    back_O = torch.where(w_O > 0, 1 / w_O.clamp(min=_LEAST), 0.0)
    lora_b_OR = (back_O.unsqueeze(1) * left_OK[:, :rank] * root_R).float()
    residual_OI = weight - scaling * lora_b_OR.double() @ lora_a_RI.double()
    return LowRankStart(
        lora_a_RI=lora_a_RI,
        lora_b_OR=lora_b_OR,
        residual_OI=residual_OI.to(weight_OI.dtype),
    )
