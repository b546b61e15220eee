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
(Abadi et al., 2016, "Deep Learning with Differential Privacy".)
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from fedpeft.dp.accounting import DpSgdEvent
from fedpeft.dp.clipping import clip_and_sum, empty_sum
from fedpeft.dp.grad_sample import per_example_grads, trainable_parameters
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
        config = self._config
        rows = poisson_sample(config.num_examples, config.sampling_prob, self._keystream)
        total = empty_sum(self._shapes, self._grid, next(self._model.parameters()).device)
        for num_rows, losses in to_batches(rows):
            grads = per_example_grads(self._model, num_rows, losses)
            if {name: grad.shape[1:] for name, grad in grads.items()} != self._shapes:
                raise PrivacyError("the trainable tensors changed after the mechanism was set up")
            total = total + clip_and_sum(grads, self._grid)
        if total.num_examples != len(rows):
            raise PrivacyError(
                f"the sample has {len(rows)} rows, its batches have {total.num_examples}"
            )
        noised = add_gaussian_noise(total, config.noise_multiplier, self._keystream)
        return NoisyGradient(
            mean={name: (v / config.expected_batch_size).float() for name, v in noised.items()},
            num_examples=total.num_examples,
            num_nonfinite=total.num_nonfinite,
        )
