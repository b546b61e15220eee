"""One flat clip over all tensors, rounding to the grid, and an exact sum.

Legend: N rows of a physical batch; D coordinates of all tensors, flattened; K clients.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedpeft.devices import to_device
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
    units_ND, finite_N = _clipped_units(grads, grid)
    total_D = units_ND.sum(0, dtype=torch.float64)
    return ClippedSum(
        units=_split(total_D, {name: grad.shape[1:] for name, grad in grads.items()}),
        grid=grid,
        num_examples=int(finite_N.numel()),
        num_nonfinite=(~finite_N).sum(),
    )


class CohortSum:
    """The clipped sums of several clients whose examples share physical batches.

    Each is what `clip_and_sum` would have made of the client's own examples, bit for bit.
    """

    def __init__(
        self, shapes: Mapping[str, torch.Size], grid: Grid, num_clients: int, device: torch.device
    ) -> None:
        """Starts with no example; all clients clip the same tensors on one grid."""
        self._shapes = dict(shapes)
        self._grid = grid
        self._total_KD = torch.zeros(
            num_clients, grid.dimension, dtype=torch.float64, device=device
        )
        self._nonfinite_K = torch.zeros(num_clients, dtype=torch.int64, device=device)
        self._num_examples = np.zeros(num_clients, dtype=np.int64)

    def add(self, grads: Mapping[str, Tensor], owners: NDArray[np.int64]) -> None:
        """Adds the examples of one physical batch, as `clip_and_sum` does.

        Args:
            grads: Parameter name → per-example gradients, shape (N, ...).
            owners: Index of each example's client, shape (N,).
        """
        units_ND, finite_N = _clipped_units(grads, self._grid)
        owner_N = to_device(torch.from_numpy(owners), units_ND.device)
        # Integers: exact in whatever order they are added.
        self._total_KD.index_add_(0, owner_N, units_ND.double())
        self._nonfinite_K.index_add_(0, owner_N, (~finite_N).long())
        self._num_examples += np.bincount(owners, minlength=len(self._num_examples))

    def by_client(self) -> list[ClippedSum]:
        """Returns each client's sum; whoever had no example has an empty one."""
        return [
            ClippedSum(
                units=_split(self._total_KD[k], self._shapes),
                grid=self._grid,
                num_examples=int(self._num_examples[k]),
                num_nonfinite=self._nonfinite_K[k],
            )
            for k in range(len(self._num_examples))
        ]


def _clipped_units(grads: Mapping[str, Tensor], grid: Grid) -> tuple[Tensor, Tensor]:
    """Each example in grid units, shape (N, D), and whether it is finite; zero where it is not."""
    # One contiguous row an example, so that the order in which its squares are summed, and so the
    # last bit of its norm, does not depend on the memory layout that the batch gave it.
    flat_ND = torch.cat([_rows(grad) for grad in grads.values()], dim=1)
    if flat_ND.shape[1] != grid.dimension:
        raise PrivacyError(
            f"the grid was made for {grid.dimension} coordinates, the gradients have "
            f"{flat_ND.shape[1]}"
        )
    norm_N = torch.linalg.vector_norm(flat_ND, dim=1, dtype=torch.float64)
    finite_N = torch.isfinite(norm_N)
    scale_N = (grid.l2_clip_norm / norm_N).clamp(max=1.0) * _ROUND_DOWN
    units_N1 = torch.where(finite_N, scale_N / grid.step, 0.0).unsqueeze(1)
    # 0 * NaN is NaN, so rows that count as zero are replaced, not multiplied.
    flat_ND.masked_fill_(~finite_N.unsqueeze(1), 0.0)
    return flat_ND.mul_(units_N1.to(flat_ND.dtype)).round_(), finite_N


def _rows(grad: Tensor) -> Tensor:
    return grad.flatten(1).to(torch.promote_types(grad.dtype, torch.float32))


def _split(total_D: Tensor, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    parts = torch.split(total_D, [shape.numel() for shape in shapes.values()])
    return {
        name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }
