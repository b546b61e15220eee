"""Gaussian noise on the grid, from a cryptographic generator.

The noise is a Gaussian rounded to an integer number of grid steps. Adding a rounded Gaussian to an
integer is rounding `integer + Gaussian`, so the release is a post-processing of the Gaussian
mechanism on the integer sum, and its low bits are no fingerprint of the value.

What is left of floating point is the Gaussian itself: Box-Muller on 64-bit uniforms in float64,
drawn without looking at the data. Its tail ends at 9.4 standard deviations (a tail of 6e-21 a
coordinate, which a delta of 1e-9 outweighs for any model that fits a machine), and one grid step
spans about 2^40 / sqrt(dimension) of its values, so that the rounded Gaussian is the ideal one to
that precision.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedpeft.dp.clipping import ClippedSum
from fedpeft.dp.randomness import Keystream
from fedpeft.errors import PrivacyError


def standard_normal(count: int, keystream: Keystream) -> NDArray[np.float64]:
    """Returns `count` standard normal numbers by Box and Muller (1958), shape (count,)."""
    half = (count + 1) // 2
    words = keystream.words(2 * half)
    uniform = (words[:half].astype(np.float64) + 1.0) * 2.0**-64  # in (0, 1]
    angle = words[half:].astype(np.float64) * (2 * math.pi * 2.0**-64)
    radius = np.sqrt(-2.0 * np.log(uniform))
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]


def add_gaussian_noise(
    clipped_sum: ClippedSum, noise_multiplier: float, keystream: Keystream
) -> Mapping[str, Tensor]:
    """Releases a clipped sum with the Gaussian mechanism.

    Args:
        clipped_sum: The sum; its grid states the sensitivity.
        noise_multiplier: Noise stddev divided by the sensitivity.
        keystream: Source of the noise.

    Returns:
        Parameter name → noised sum, float64, multiples of the grid step.

    Raises:
        PrivacyError: If the multiplier is not positive and finite.
    """
    if not (math.isfinite(noise_multiplier) and noise_multiplier > 0):
        raise PrivacyError(f"noise_multiplier must be positive and finite, got {noise_multiplier}")
    grid = clipped_sum.grid
    stddev_units = noise_multiplier * grid.sensitivity / grid.step
    released = {}
    for name, units in clipped_sum.units.items():
        noise = np.rint(stddev_units * standard_normal(units.numel(), keystream))
        noise_units = torch.from_numpy(noise).to(units.device).reshape(units.shape)
        released[name] = (units + noise_units) * grid.step
    return released
