"""One flat clip over all tensors, rounding to the grid, and an exact sum.

Legend: N rows of a physical batch; D coordinates of one tensor, flattened.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedpeft.dp.grid import Grid
from fedpeft.errors import PrivacyError

# The product norm * scale may exceed the clip norm by a few float32 roundings; this may not.
_ROUND_DOWN = 1 - 2.0**-20


@dataclass(frozen=True, kw_only=True)
class ClippedSum:
    """The sum of clipped examples, as integers on a grid.

    Guarantees: adding or removing one example changes the sum by at most `grid.sensitivity` in L2,
    exactly, whatever the example, the model or the order of summation. A non-finite example counts
    as zero. The sum does not depend on how a batch was cut into physical batches.

    Attributes:
        units: Parameter name → sum in units of `grid.step`, float64 holding integers.
        grid: The grid, which carries the sensitivity.
        num_examples: Rows that were summed. Private: never release it.
        num_nonfinite: Rows that counted as zero, int64, shape (): on the device, since to read it
            is to wait for the device. Private: never release it.
    """

    units: Mapping[str, Tensor]
    grid: Grid
    num_examples: int
    num_nonfinite: Tensor

    def __post_init__(self) -> None:
        """Refuses more examples than the integers can hold."""
        if self.num_examples > self.grid.max_examples:
            raise PrivacyError(f"a batch may hold at most {self.grid.max_examples} examples")

    def __add__(self, other: "ClippedSum") -> "ClippedSum":
        if self.grid != other.grid or self.units.keys() != other.units.keys():
            raise PrivacyError("two clipped sums on different grids or tensors cannot be added")
        return ClippedSum(
            units={name: units + other.units[name] for name, units in self.units.items()},
            grid=self.grid,
            num_examples=self.num_examples + other.num_examples,
            num_nonfinite=self.num_nonfinite + other.num_nonfinite,
        )


def empty_sum(shapes: Mapping[str, torch.Size], grid: Grid, device: torch.device) -> ClippedSum:
    """Returns the sum over no example, which is released with noise like any other."""
    zeros = {
        name: torch.zeros(shape, dtype=torch.float64, device=device)
        for name, shape in shapes.items()
    }
    none = torch.zeros((), dtype=torch.int64, device=device)
    return ClippedSum(units=zeros, grid=grid, num_examples=0, num_nonfinite=none)


def clip_and_sum(grads: Mapping[str, Tensor], grid: Grid) -> ClippedSum:
    """Clips each example over all tensors at once, rounds it to the grid, and sums exactly.

    Edge cases: norm 0 stays 0; NaN or Inf anywhere in an example zeroes the whole example (min(1,
    C/NaN) would pass it unclipped), and so does a float64 example whose squares overflow; float32
    values whose squares overflow are measured in float64; halves are widened to float32 first,
    because a product rounded to 8 bits can exceed the clip norm.

    Args:
        grads: Parameter name → per-example gradients, shape (N, ...), of any floating type.
        grid: The grid for this clip norm and this number of coordinates.

    Raises:
        PrivacyError: If the tensors' coordinates are not those the grid was made for, or there are
            more rows than the grid sums exactly.
    """
    flat = {name: _rows(grad) for name, grad in grads.items()}
    dimension = sum(grad_ND.shape[1] for grad_ND in flat.values())
    if dimension != grid.dimension:
        raise PrivacyError(
            f"the grid was made for {grid.dimension} coordinates, the gradients have {dimension}"
        )
    squares = [_norms(grad_ND).square() for grad_ND in flat.values()]
    norm_N = torch.stack(squares).sum(0).sqrt()
    finite_N = torch.isfinite(norm_N)
    scale_N = (grid.l2_clip_norm / norm_N).clamp(max=1.0) * _ROUND_DOWN
    # 0 * NaN is NaN, so rows that count as zero are replaced, not multiplied.
    units_N1 = torch.where(finite_N, scale_N / grid.step, 0.0).unsqueeze(1)
    units = {}
    for name, grad_ND in flat.items():
        kept_ND = torch.where(finite_N.unsqueeze(1), grad_ND, 0.0)
        rounded_ND = (kept_ND * units_N1.to(kept_ND.dtype)).round_()
        units[name] = rounded_ND.sum(0, dtype=torch.float64).reshape(grads[name].shape[1:])
    return ClippedSum(
        units=units,
        grid=grid,
        num_examples=int(norm_N.numel()),
        num_nonfinite=(~finite_N).sum(),
    )


def _rows(grad: Tensor) -> Tensor:
    # Contiguous, so that the order in which a row's squares are summed, and so the last bit of its
    # norm, does not depend on the memory layout that the other rows of the batch gave it.
    wide = torch.promote_types(grad.dtype, torch.float32)
    return grad.flatten(1).to(wide).contiguous()


def _norms(grad_ND: Tensor) -> Tensor:
    norms_N: Tensor = torch.linalg.vector_norm(grad_ND, dim=1, dtype=torch.float64)
    return norms_N
