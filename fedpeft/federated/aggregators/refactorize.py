"""Other factors of the same product B·A, without ever forming it.

Legend: O outputs, I inputs, R rank, K numerical rank of A (K <= R).
"""

import torch
from torch import Tensor

from fedpeft.errors import AdapterError

# Directions of A's unit rows below this share of the largest are rounding, not A's row space.
_RELATIVE_RANK = 1e-7
_ORTHONORMAL = 1e-6


def is_orthonormal(lora_a_RI: Tensor) -> bool:
    """Returns whether the rows of A are orthonormal to float32 precision."""
    gram_RR = lora_a_RI.double() @ lora_a_RI.double().T
    identity = torch.eye(gram_RR.shape[0], dtype=gram_RR.dtype, device=gram_RR.device)
    return float((gram_RR - identity).abs().max()) < _ORTHONORMAL


def orthonormal_basis(lora_a_RI: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (M, Q) with A = M·Q: Q of shape (K, I) has orthonormal rows that span A's row space.

    Pruned ranks (zero rows) and repeated rows lower K; no direction outside the row space of A is
    ever made up. Computed in float64.
    """
    a_RI = lora_a_RI.double()
    if is_orthonormal(lora_a_RI):
        # One Newton-Schulz step takes the float32 rounding out of Q.
        q_RI = 1.5 * a_RI - 0.5 * (a_RI @ a_RI.T) @ a_RI
        return a_RI @ q_RI.T, q_RI
    # Rows of equal norm: a short row is a direction like any other, its column of B may be long.
    norm_R1 = torch.linalg.vector_norm(a_RI, dim=1, keepdim=True)
    q_IR, r_RR = torch.linalg.qr((a_RI / norm_R1.where(norm_R1 > 0, 1.0)).T)
    left_RR, sigma_R, right_RR = torch.linalg.svd(r_RR.T)
    rank = int((sigma_R > _RELATIVE_RANK * sigma_R[:1].clamp(min=1e-300)).sum())
    return norm_R1 * left_RR[:, :rank] * sigma_R[:rank], right_RR[:rank] @ q_IR.T


def refactorize_qr(lora_a_RI: Tensor, lora_b_OR: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (A', B') with the same product and orthonormal rows in A', zero below A's rank."""
    _check(lora_a_RI, lora_b_OR)
    mix_RK, q_KI = orthonormal_basis(lora_a_RI)
    return _padded(q_KI, lora_b_OR.double() @ mix_RK, lora_a_RI, lora_b_OR)


def refactorize_svd(lora_a_RI: Tensor, lora_b_OR: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (A', B') = (Vᵀ, UΣ) of the SVD of B·A, the refactorization of FedSVD (2025).

    By a QR of each factor and an R×R SVD, never of the O×I product: exact to float32 rounding and
    thousands of times cheaper. Rows of A' beyond the rank of B·A rotate inside the row space of A,
    so that B = 0 leaves that space as it was; rows beyond the rank of A itself are zero. The
    scaling alpha/r multiplies the product on both sides and does not enter.
    """
    _check(lora_a_RI, lora_b_OR)
    mix_RK, q_KI = orthonormal_basis(lora_a_RI)
    left_OK, r_KK = torch.linalg.qr(lora_b_OR.double() @ mix_RK)
    u_KK, sigma_K, vt_KK = torch.linalg.svd(r_KK)
    return _padded(vt_KK @ q_KI, (left_OK @ u_KK) * sigma_K, lora_a_RI, lora_b_OR)


def _check(lora_a_RI: Tensor, lora_b_OR: Tensor) -> None:
    if not (torch.isfinite(lora_a_RI).all() and torch.isfinite(lora_b_OR).all()):
        raise AdapterError("cannot refactorize: A or B holds NaN or infinite values")


def _padded(a_KI: Tensor, b_OK: Tensor, like_a: Tensor, like_b: Tensor) -> tuple[Tensor, Tensor]:
    rank = a_KI.shape[0]
    lora_a, lora_b = torch.zeros_like(like_a), torch.zeros_like(like_b)
    lora_a[:rank] = a_KI.to(like_a.dtype)
    lora_b[:, : b_OK.shape[1]] = b_OK.to(like_b.dtype)
    return lora_a, lora_b
