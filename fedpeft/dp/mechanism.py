"""DP-SGD on one data set: the one place that composes sampling, clipping, noise and accounting.

The guarantee, stated here and nowhere else. Let `step` run `num_steps` times on a data set. The
sequence of all means that `step` returns is (epsilon, delta)-differentially private at the level
of one example, neighbours differing by adding or removing one, with epsilon as `accounting.epsilon`
computes it from `event(num_steps)`, because in each step

1. each example enters the batch on its own secret coin of probability `sampling_prob` (sampling);
2. one example moves the sum by at most the grid's sensitivity, whatever it contains (clipping);
3. Gaussian noise of `noise_multiplier` times that sensitivity is added to every coordinate, also
   when the batch is empty (noise);
4. the divisor is the public expected batch size, never the size of the batch.

What is not covered: the number of rows, which fixes `sampling_prob`, is taken as public, and so are
the shapes, the clip norm and the step count. Diagnostics marked private must not leave the client.
And a row's gradient must not depend on the other rows of its physical batch. Where the model mixes
no rows, that holds up to the last bits of float32, since kernels and padding change with the batch.
For 128 rows of text on a 6-layer encoder, these bits moved the sum by less than 1e-4 of the clip
norm, where the sensitivity allows 7e-4 for rounding; a forward pass in half precision moves more.
(Abadi et al., 2016, "Deep Learning with Differential Privacy".)
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedpeft.dp.accounting import DpSgdEvent
from fedpeft.dp.clipping import ClippedSum, clip_and_sum, empty_sum
from fedpeft.dp.grad_sample import owned_by_rows, per_example_grads, trainable_parameters
from fedpeft.dp.grid import Grid
from fedpeft.dp.noise import add_gaussian_noise
from fedpeft.dp.randomness import Keystream
from fedpeft.dp.sampling import poisson_sample
from fedpeft.errors import PrivacyError

PhysicalBatch = tuple[int, Callable[[], Tensor]]
"""Number of rows, and what runs the forward pass and returns the loss of each row."""


@dataclass(frozen=True, kw_only=True)
class DpSgdConfig:
    """The public parameters of DP-SGD on one data set.

    Attributes:
        num_examples: Rows of the data set.
        expected_batch_size: Public divisor; `sampling_prob` is this over `num_examples`.
        l2_clip_norm: Bound on one example's gradient.
        noise_multiplier: Noise stddev over sensitivity.
    """

    num_examples: int
    expected_batch_size: float
    l2_clip_norm: float
    noise_multiplier: float

    def __post_init__(self) -> None:
        """Refuses what has no guarantee."""
        if self.num_examples < 1:
            raise PrivacyError("a data set without rows cannot be trained on")
        if not 0 < self.expected_batch_size <= self.num_examples:
            raise PrivacyError(
                f"expected_batch_size must lie in (0, {self.num_examples}] for "
                f"{self.num_examples} rows, got {self.expected_batch_size}"
            )
        self.event(1)

    @property
    def sampling_prob(self) -> float:
        """Probability of each example in each step."""
        return self.expected_batch_size / self.num_examples

    def event(self, num_steps: int) -> DpSgdEvent:
        """Returns what `num_steps` steps cost; reserve it before the first gradient."""
        return DpSgdEvent(
            noise_multiplier=self.noise_multiplier,
            sampling_prob=self.sampling_prob,
            num_steps=num_steps,
        )


@dataclass(frozen=True, kw_only=True)
class NoisyGradient:
    """What one step releases, and two diagnostics that stay with the client.

    Attributes:
        mean: Parameter name → noised sum over the expected batch size. Safe to release.
        num_examples: Realised batch size. Private.
        num_nonfinite: Examples that counted as zero. Private.
    """

    mean: Mapping[str, Tensor]
    num_examples: int
    num_nonfinite: int


class DpSgd:
    """DP-SGD over one data set; the module's docstring states the guarantee."""

    def __init__(self, model: nn.Module, config: DpSgdConfig, keystream: Keystream) -> None:
        """Fixes the trainable tensors; training others later is refused."""
        self._model = model
        self._config = config
        self._keystream = keystream
        self._shapes = {name: p.shape for name, p in trainable_parameters(model).items()}
        dimension = sum(shape.numel() for shape in self._shapes.values())
        self._grid = Grid.for_clip_norm(config.l2_clip_norm, dimension)

    def step(self, to_batches: Callable[[NDArray[np.int64]], list[PhysicalBatch]]) -> NoisyGradient:
        """Runs one step: draws a Poisson sample and releases its noised mean gradient.

        Args:
            to_batches: Cuts the rows of the sample (increasing indices, possibly none) into
                physical batches; every row in exactly one.

        Raises:
            PrivacyError: If rows were lost or added, or the trainable tensors changed.
        """

        def joint(rows: Sequence[NDArray[np.int64]]) -> list[CohortBatch]:
            batches = to_batches(rows[0])
            return [CohortBatch(owners=[0] * count, losses=losses) for count, losses in batches]

        return cohort_step([self], joint)[0]

    def _sample(self) -> NDArray[np.int64]:
        return poisson_sample(
            self._config.num_examples, self._config.sampling_prob, self._keystream
        )

    def _empty(self, device: torch.device) -> ClippedSum:
        return empty_sum(self._shapes, self._grid, device)

    def _clip(self, grads: Mapping[str, Tensor]) -> ClippedSum:
        if {name: grad.shape[1:] for name, grad in grads.items()} != self._shapes:
            raise PrivacyError("the trainable tensors changed after the mechanism was set up")
        return clip_and_sum(grads, self._grid)

    def _release(self, total: ClippedSum, num_rows: int) -> NoisyGradient:
        if total.num_examples != num_rows:
            raise PrivacyError(
                f"the sample has {num_rows} rows, its batches have {total.num_examples}"
            )
        noised = add_gaussian_noise(total, self._config.noise_multiplier, self._keystream)
        divisor = self._config.expected_batch_size
        return NoisyGradient(
            mean={name: (value / divisor).float() for name, value in noised.items()},
            num_examples=total.num_examples,
            num_nonfinite=total.num_nonfinite,
        )


@dataclass(frozen=True, kw_only=True)
class CohortBatch:
    """One physical batch whose rows may belong to several clients.

    Attributes:
        owners: Index of each row's client in the cohort.
        losses: Runs the forward pass and returns the loss of each row, shape (N,).
    """

    owners: Sequence[int]
    losses: Callable[[], Tensor]


def cohort_step(
    members: Sequence[DpSgd],
    to_batches: Callable[[Sequence[NDArray[np.int64]]], Iterable[CohortBatch]],
    stacked: Mapping[str, Tensor] | None = None,
) -> list[NoisyGradient]:
    """Runs one step of every client in shared forward and backward passes.

    Each client draws its own sample, clips and sums its own rows, and adds its own noise: what it
    releases is what `DpSgd.step` would have released, and the guarantee is the same.

    Args:
        members: One mechanism a client, all on one model.
        to_batches: Cuts the clients' samples into physical batches, every row in exactly one.
        stacked: Parameter name → the clients' own parameters, shape (K, ...). Default: the model's
            own for all.

    Raises:
        PrivacyError: If a client's rows were lost or added, or the trainable tensors changed.
    """
    model = members[0]._model
    if any(member._model is not model for member in members):
        raise PrivacyError("the clients of a cohort must train one model")
    device = next(model.parameters()).device
    rows = [member._sample() for member in members]
    totals = [member._empty(device) for member in members]
    for batch in to_batches(rows):
        owner_N = torch.tensor(batch.owners, device=device)
        given = None if stacked is None else owned_by_rows(stacked, owner_N)
        grads = per_example_grads(model, len(batch.owners), batch.losses, given)
        for k in sorted(set(batch.owners)):
            alone = len(members) == 1
            own = grads if alone else {name: grad[owner_N == k] for name, grad in grads.items()}
            totals[k] = totals[k] + members[k]._clip(own)
    return [
        member._release(total, len(drawn))
        for member, total, drawn in zip(members, totals, rows, strict=True)
    ]
