"""Initial `A` matrices. `B` always starts at zero, so the adapted model starts as the base model.

The subspace that A starts in decides how much of the gradient reaches B; FedSVD only rotates A
inside it.
"""

import math
from typing import Literal

import torch
from torch import Tensor

Init = Literal["kaiming", "orthonormal", "principal"]


def initial_lora_a(weight_OI: Tensor, rank: int, init: Init, generator: torch.Generator) -> Tensor:
    """Returns an initial A, shape (rank, d_in), float32 on the CPU.

    Args:
        weight_OI: The module's frozen weight, shape (d_out, d_in).
        rank: At most min(d_out, d_in).
        init: 'kaiming' is uniform in ±1/sqrt(d_in), PEFT's default (He et al., 2015, a = sqrt 5);
            'orthonormal' has random orthonormal rows; 'principal' has the top right singular
            vectors of the weight as rows (the subspace of PiSSA, Meng et al., 2024, with the weight
            itself left as it is).
        generator: CPU generator of the random kinds.
    """
    d_in = weight_OI.shape[1]
    if init == "kaiming":
        bound = 1 / math.sqrt(d_in)
        return torch.empty(rank, d_in).uniform_(-bound, bound, generator=generator)
    if init == "orthonormal":
        gaussian_IR = torch.randn(d_in, rank, generator=generator, dtype=torch.float64)
        orthonormal_IR: Tensor = torch.linalg.qr(gaussian_IR).Q
        return orthonormal_IR.T.contiguous().float()
    weight = weight_OI.detach().cpu().double()
    right_RI: Tensor = torch.linalg.svd(weight, full_matrices=False).Vh[:rank]
    # A singular vector's sign is arbitrary; fixing it makes every machine start alike.
    largest_R1 = right_RI.gather(1, right_RI.abs().argmax(1, keepdim=True))
    return (right_RI * largest_R1.sign()).contiguous().float()
