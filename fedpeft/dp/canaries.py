"""The installed mechanism on rows whose gradients are given: what its checks and audits look at.

Legend: N rows, D coordinates, S steps.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedpeft.dp.mechanism import DpSgd, DpSgdConfig, PhysicalBatch
from fedpeft.dp.randomness import Keystream

_PHYSICAL_ROWS = 256


class _Dot(nn.Module):
    """A weight whose gradient on a row is that row of the input, exactly."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_features))
        self.row_parameters: dict[str, Tensor] | None = None

    def forward(self, x_ND: Tensor) -> Tensor:
        weight = self.weight if self.row_parameters is None else self.row_parameters["weight"]
        return (x_ND * weight).sum(1)


class GivenGradients(nn.Module):
    """Two tensors; the gradient of a row is the row itself, its halves one for each tensor."""

    def __init__(self, num_features: int) -> None:
        """Takes the number of coordinates, at least 2."""
        super().__init__()
        self.left, self.right = _Dot(num_features // 2), _Dot(num_features - num_features // 2)

    def losses(self, gradients_ND: Tensor) -> Tensor:
        """Returns a loss a row, shape (N,)."""
        half = self.left.weight.numel()
        losses_N: Tensor = self.left(gradients_ND[:, :half]) + self.right(gradients_ND[:, half:])
        return losses_N


def releases(
    gradients_ND: NDArray[np.float32], config: DpSgdConfig, num_steps: int, keystream: Keystream
) -> Iterator[NDArray[np.float64]]:
    """Runs `dp.mechanism` and yields what each step releases, shape (D,).

    Row n of the data set has the gradient `gradients_ND[n]` in every step.
    """
    model, gradients = GivenGradients(gradients_ND.shape[1]), torch.from_numpy(gradients_ND)
    mechanism = DpSgd(model, config, keystream)

    def to_batches(rows: NDArray[np.int64]) -> list[PhysicalBatch]:
        parts = [
            rows[start : start + _PHYSICAL_ROWS] for start in range(0, len(rows), _PHYSICAL_ROWS)
        ]
        return [(part, partial(model.losses, gradients[part])) for part in parts]

    for _ in range(num_steps):
        mean = mechanism.step(to_batches).mean
        yield torch.cat([tensor.flatten() for tensor in mean.values()]).double().numpy()


def run_installed(
    gradients_ND: NDArray[np.float32], config: DpSgdConfig, num_steps: int
) -> NDArray[np.float64]:
    """A `checks.Run` of `dp.mechanism` with secret coins and noise, as a client would run it."""
    return np.array(list(releases(gradients_ND, config, num_steps, Keystream.from_system())))
