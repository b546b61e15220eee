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
Which row a loss was computed from is taken on the caller's word: that each sampled row was named
once, in one physical batch, is all that `step` can see.

And a row's gradient must not depend on the other rows of its physical batch. Where the model mixes
no rows, that holds up to the last bits of float32, since kernels and padding change with the batch.
For 128 rows of text on a 6-layer encoder, these bits moved the sum by less than 1e-4 of the clip
norm, where the sensitivity allows 8e-4 for rounding (`benchmarks/neighbours.py`). In bfloat16
(`model.precision`) one row more or less moved what the others add to the sum by 4e-3 of the clip
norm, on other texts by 6e-3. `BFLOAT16_CROSS_TALK`, three times that, is part of the sensitivity
there, and the noise grows with it. These figures are measured, not proven: train in float32 where
the guarantee must hold to the letter.
(Abadi et al., 2016, "Deep Learning with Differential Privacy".)
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedpeft.devices import to_device
from fedpeft.dp.accounting import DpSgdEvent
from fedpeft.dp.clipping import ClippedSum, CohortSum, clip_and_sum, empty_sum
from fedpeft.dp.grad_sample import owned_by_rows, per_example_grads, trainable_parameters
from fedpeft.dp.grid import Grid
from fedpeft.dp.noise import add_gaussian_noise
from fedpeft.dp.randomness import Keystream
from fedpeft.dp.sampling import poisson_sample
from fedpeft.errors import PrivacyError

BFLOAT16_CROSS_TALK = 0.02
"""Share of the clip norm that is granted to the rounding of a forward pass in bfloat16."""

PhysicalBatch = tuple[NDArray[np.int64], Callable[[], Tensor]]
"""Index of each row in the data set, and what runs the forward pass and returns a loss a row."""


@dataclass(frozen=True, kw_only=True)
class DpSgdConfig:
    """The public parameters of DP-SGD on one data set.

    Attributes:
        num_examples: Rows of the data set.
        expected_batch_size: Public divisor; `sampling_prob` is this over `num_examples`.
        l2_clip_norm: Bound on one example's gradient.
        noise_multiplier: Noise stddev over sensitivity.
        cross_talk: Share of the clip norm by which one example may change what the others add to a
            sum, beyond the last bits of float32. The sensitivity grows by it.
    """

    num_examples: int
    expected_batch_size: float
    l2_clip_norm: float
    noise_multiplier: float
    cross_talk: float = 0.0

    def __post_init__(self) -> None:
        """Refuses what has no guarantee."""
        if self.num_examples < 1:
            raise PrivacyError("a data set without rows cannot be trained on")
        Grid.for_clip_norm(self.l2_clip_norm, 1, self.cross_talk)
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
        self._grid = Grid.for_clip_norm(config.l2_clip_norm, dimension, config.cross_talk)

    def step(self, to_batches: Callable[[NDArray[np.int64]], list[PhysicalBatch]]) -> NoisyGradient:
        """Runs one step: draws a Poisson sample and releases its noised mean gradient.

        Args:
            to_batches: Cuts the rows of the sample (increasing indices, possibly none) into
                physical batches; every row in exactly one.

        Raises:
            PrivacyError: If a row was lost, repeated or added, or the trainable tensors changed.
        """

        def joint(rows: Sequence[NDArray[np.int64]]) -> list[CohortBatch]:
            batches = to_batches(rows[0])
            return [
                CohortBatch(rows=given, owners=np.zeros(len(given), np.int64), losses=losses)
                for given, losses in batches
            ]

        return cohort_step([self], joint)[0]

    def _sample(self) -> NDArray[np.int64]:
        return poisson_sample(
            self._config.num_examples, self._config.sampling_prob, self._keystream
        )

    def _check_shapes(self, grads: Mapping[str, Tensor]) -> None:
        if {name: grad.shape[1:] for name, grad in grads.items()} != self._shapes:
            raise PrivacyError("the trainable tensors changed after the mechanism was set up")

    def _release(self, total: ClippedSum) -> NoisyGradient:
        # One vector of all coordinates: its noise goes to the device in one copy.
        flat = torch.cat([units.flatten() for units in total.units.values()])
        noised = add_gaussian_noise(
            replace(total, units={"all": flat}), self._config.noise_multiplier, self._keystream
        )
        mean = (noised["all"] / self._config.expected_batch_size).float()
        parts = torch.split(mean, [units.numel() for units in total.units.values()])
        return NoisyGradient(
            mean={
                name: part.reshape(units.shape)
                for (name, units), part in zip(total.units.items(), parts, strict=True)
            },
            num_examples=total.num_examples,
            num_nonfinite=int(total.num_nonfinite),
        )


@dataclass(frozen=True, kw_only=True)
class CohortBatch:
    """One physical batch whose rows may belong to several clients.

    Attributes:
        rows: Index of each row in its client's data set, shape (N,).
        owners: Index of each row's client in the cohort, shape (N,).
        losses: Runs the forward pass and returns the loss of each row, shape (N,).
    """

    rows: NDArray[np.int64]
    owners: NDArray[np.int64]
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
        PrivacyError: If a client's row was lost, repeated, added or given to another client, or the
            trainable tensors changed. Nothing is released then.
    """
    first = members[0]
    if any(member._model is not first._model for member in members):
        raise PrivacyError("the clients of a cohort must train one model")
    if any((member._grid, member._shapes) != (first._grid, first._shapes) for member in members):
        raise PrivacyError("the clients of a cohort must clip the same tensors to one clip norm")
    device = next(first._model.parameters()).device
    samples = [member._sample() for member in members]
    alone = empty_sum(first._shapes, first._grid, device)
    together = CohortSum(first._shapes, first._grid, len(members), device)
    used: list[CohortBatch] = []
    for batch in to_batches(samples):
        num_rows = len(batch.rows)
        _check_owners(batch, len(members))
        given = None
        if stacked is not None:
            given = owned_by_rows(stacked, to_device(torch.from_numpy(batch.owners), device))
        grads = per_example_grads(first._model, num_rows, batch.losses, given)
        first._check_shapes(grads)
        if len(members) == 1:
            alone = alone + clip_and_sum(grads, first._grid)
        else:
            together.add(grads, batch.owners)
        used.append(batch)
    _check_rows(samples, used)
    totals = [alone] if len(members) == 1 else together.by_client()
    return [member._release(total) for member, total in zip(members, totals, strict=True)]


def _check_owners(batch: CohortBatch, num_clients: int) -> None:
    known = np.isin(batch.owners, np.arange(num_clients))
    if batch.owners.shape != batch.rows.shape or not known.all():
        raise PrivacyError(
            f"expected a client below {num_clients} for each of {len(batch.rows)} rows of a "
            f"physical batch, got {batch.owners}"
        )


def _check_rows(samples: Sequence[NDArray[np.int64]], batches: Sequence[CohortBatch]) -> None:
    """Refuses batches that do not hold each sampled row of each client exactly once."""
    rows = np.concatenate([batch.rows for batch in batches] or [np.zeros(0, np.int64)])
    owners = np.concatenate([batch.owners for batch in batches] or [np.zeros(0, np.int64)])
    for k, sample in enumerate(samples):
        given = np.sort(rows[owners == k])
        if not np.array_equal(given, sample):
            missing = np.setdiff1d(sample, given).size
            foreign = np.setdiff1d(given, sample).size
            raise PrivacyError(
                f"the physical batches must hold each of the {len(sample)} sampled rows of client "
                f"{k} once; they hold {len(given)}: {missing} missing, {foreign} not sampled, "
                f"{len(given) - np.unique(given).size} repeated"
            )
