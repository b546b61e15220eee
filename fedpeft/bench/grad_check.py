"""Gradients of the arms against autograd, row by row.

Legend: N rows; D coordinates, flattened.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fedpeft.bench.cases import trained_tensors
from fedpeft.bench.schema import CheckReport
from fedpeft.dp.grid import Grid
from fedpeft.federated.adapted_model import AdaptedModel
from fedpeft.models.dataset import Batch

# Kernels choose another order of summation for one row than for many; float32 keeps 24 bits, and
# bfloat16 8 of them, layer after layer. The gradient of a wrong row is off by about 1.4.
GRAD_TOLERANCES = {"float32": 1e-4, "bfloat16": 0.15}
SUM_TOLERANCES = {"float32": 1e-4, "bfloat16": 0.03}
_SMALL_SHARE = 1e-3  # of the row's norm: a smaller tensor is measured against this much
_NUM_SIGMAS = 6.0


def oracle_grads(model: AdaptedModel, batch: Batch) -> dict[str, Tensor]:
    """Returns each row's gradient by autograd with that row alone in the batch, shape (N, ...)."""
    parameters = trained_tensors(model)
    rows = []
    for n in range(batch.num_rows):
        alone = Batch(
            input_ids_NT=batch.input_ids_NT[n : n + 1],
            attention_mask_NT=batch.attention_mask_NT[n : n + 1],
            targets_N=batch.targets_N[n : n + 1],
        )
        loss = model.task_model.losses(alone).sum()
        rows.append(torch.autograd.grad(loss, list(parameters.values())))
    return {name: torch.stack(parts) for name, *parts in zip(parameters, *rows, strict=True)}


def row_norms(grads: Mapping[str, Tensor]) -> Tensor:
    """Returns the L2 norm of each row's gradient over all tensors, shape (N,), float64."""
    squares = [grad.flatten(1).double().square().sum(1) for grad in grads.values()]
    return torch.stack(squares).sum(0).sqrt()


def clipped_sum(grads: Mapping[str, Tensor], l2_clip_norm: float) -> dict[str, Tensor]:
    """Returns the sum of rows clipped over all tensors at once, in float64 and by definition."""
    scale_N = (l2_clip_norm / row_norms(grads)).clamp(max=1.0)
    return {name: torch.tensordot(scale_N, grad.double(), dims=1) for name, grad in grads.items()}


def check_grads(
    name: str, grads: Mapping[str, Tensor], oracle: Mapping[str, Tensor], tolerance: float
) -> CheckReport:
    """Compares per-example gradients, the worst tensor of the worst row."""
    row_N = row_norms(oracle)
    worst = 0.0 if grads.keys() == oracle.keys() else math.inf
    for key, expected in oracle.items():
        if key not in grads or grads[key].shape != expected.shape:
            worst = math.inf
            continue
        expected_ND = expected.flatten(1).double()
        error_N = (grads[key].flatten(1).double() - expected_ND).norm(dim=1)
        scale_N = torch.maximum(expected_ND.norm(dim=1), _SMALL_SHARE * row_N)
        worst = _worse(worst, float((error_N / scale_N).max()))
    return CheckReport(
        name=f"{name}: per-example gradients = autograd row by row",
        error=worst if math.isfinite(worst) else None,
        tolerance=tolerance,
        measure="largest error of a row's tensor, relative to that tensor's norm in that row",
    )


def check_sum(
    name: str,
    found: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    grid: Grid,
    num_rows: int,
    tolerance: float,
) -> CheckReport:
    """Compares clipped sums; what rounding to the grid may cost is added to the tolerance."""
    difference = _distance(found, expected) / (num_rows * grid.l2_clip_norm)
    rounding = grid.sensitivity / grid.l2_clip_norm - 1
    return CheckReport(
        name=name,
        error=difference if math.isfinite(difference) else None,
        tolerance=tolerance + rounding,
        measure="L2 distance over number of rows times clip norm",
    )


def check_noise(
    name: str, released: Mapping[str, Tensor], total: Mapping[str, Tensor], stddev: float
) -> CheckReport:
    """Compares what a step releases, times the divisor, with the sum it should be plus noise."""
    dimension = sum(tensor.numel() for tensor in total.values())
    found = _distance(released, total) / math.sqrt(dimension)
    error = abs(found / stddev - 1)
    return CheckReport(
        name=f"{name}: released = clipped sum + noise of the stated size",
        error=error if math.isfinite(error) else None,
        tolerance=_NUM_SIGMAS / math.sqrt(2 * dimension),
        measure="relative error of the noise's standard deviation",
    )


def _distance(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> float:
    if left.keys() != right.keys():
        return math.inf
    squares = [(left[n].double() - right[n].double()).square().sum() for n in right]
    return math.sqrt(float(torch.stack(squares).sum()))


def _worse(one: float, other: float) -> float:
    return math.inf if math.isnan(one) or math.isnan(other) else max(one, other)
