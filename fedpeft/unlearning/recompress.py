"""A sum of low-rank updates as one of a stated rank. Legend: I inputs, O outputs, R rank."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedpeft.errors import AdapterError
from fedpeft.federated.aggregators.refactorize import refactorize_svd


@dataclass(frozen=True, kw_only=True)
class LowRankTerm:
    """The update scaling · B · A of one weight."""

    lora_a_RI: Tensor
    lora_b_OR: Tensor
    scaling: float


@dataclass(frozen=True, kw_only=True)
class Recompressed:
    """The best approximation of a sum of terms.

    Attributes:
        term: A has orthonormal rows, B the singular values.
        total_squared: Squared Frobenius norm of the sum.
        lost_squared: The same of what the approximation leaves out.
    """

    term: LowRankTerm
    total_squared: float
    lost_squared: float


def recompress(terms: Sequence[LowRankTerm], *, rank: int, scaling: float) -> Recompressed:
    """Returns the closest update of rank `rank` to the sum of terms, in Frobenius norm.

    The stacked factors are refactorized, so that the d x d sum is never built. Where the sum has
    less than that rank, the rest of A's rows are orthonormal and the rest of B is zero.

    Raises:
        AdapterError: If there is no term, shapes do not fit, or a value is not finite.
    """
    if not terms:
        raise AdapterError("there is no update to recompress")
    num_columns, num_rows = terms[0].lora_a_RI.shape[1], terms[0].lora_b_OR.shape[0]
    for term in terms:
        a, b = term.lora_a_RI, term.lora_b_OR
        if (a.shape[1], b.shape[0]) != (num_columns, num_rows) or a.shape[0] != b.shape[1]:
            raise AdapterError(f"factors {tuple(b.shape)} and {tuple(a.shape)} do not fit")
        if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
            raise AdapterError("an update holds NaN or infinite values")
    if not 1 <= rank <= min(num_rows, num_columns):
        raise AdapterError(f"rank {rank} does not fit a weight of {num_rows} x {num_columns}")
    stacked_KI = torch.cat([term.lora_a_RI.double() for term in terms])
    stacked_OK = torch.cat([term.scaling * term.lora_b_OR.double() for term in terms], dim=1)
    a_KI, b_OK = refactorize_svd(stacked_KI, stacked_OK)
    squared_K = b_OK.square().sum(0)
    kept = min(rank, int(a_KI.any(1).sum()))  # rows beyond the rank of all A together are zero
    lora_a_RI, lora_b_OR = a_KI[:kept], b_OK[:, :kept] / scaling
    if kept < rank:
        lora_a_RI = _completed(lora_a_RI, rank)
        lora_b_OR = torch.cat([lora_b_OR, lora_b_OR.new_zeros(num_rows, rank - kept)], dim=1)
    return Recompressed(
        term=LowRankTerm(lora_a_RI=lora_a_RI.float(), lora_b_OR=lora_b_OR.float(), scaling=scaling),
        total_squared=float(squared_K.sum()),
        lost_squared=float(squared_K[kept:].sum()),
    )


def _completed(rows_KI: Tensor, rank: int) -> Tensor:
    """Orthonormal rows, the given ones first."""
    square = torch.linalg.qr(rows_KI.T, mode="complete").Q
    return torch.cat([rows_KI, square.T[rows_KI.shape[0] : rank]])
