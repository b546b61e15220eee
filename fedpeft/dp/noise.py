"""Gaussian noise on the grid, from a cryptographic generator.

The noise is a Gaussian rounded to an integer number of grid steps. Adding a rounded Gaussian to an
integer is rounding `integer + Gaussian`, so the release is a post-processing of the Gaussian
mechanism on the integer sum, and its low bits are no fingerprint of the value.

What is left of floating point is the Gaussian itself: Box-Muller in float64, drawn without looking
at the data. The uniform under the logarithm has 128 bits, so that it keeps 53 significant ones far
into the tail: the tail ends at 13.3 standard deviations (probability 2e-40), and up to there one
grid step spans at least 2^36 / (noise_multiplier * sqrt(dimension)) of the Gaussian's values, so
that the rounded Gaussian is the ideal one to that precision. (With 64 bits and a million
coordinates, the radius would jump by more than a grid step beyond 8 deviations: a fingerprint.)
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

# Noise ends at 13.3 stddevs and a sum at 2^52 units: below this, doubles hold their sum exactly.
_LARGEST_STDDEV_UNITS = 2.0**48


def standard_normal(count: int, keystream: Keystream) -> NDArray[np.float64]:
    """Returns `count` standard normal numbers by Box and Muller (1958), shape (count,)."""
    half = (count + 1) // 2
    high, low, turn = keystream.words(3 * half).reshape(3, half).astype(np.float64)
    uniform = high * 2.0**-64 + (low + 1.0) * 2.0**-128  # in (0, 1]
    angle = turn * (2 * math.pi * 2.0**-64)
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
        PrivacyError: If the multiplier is not positive and finite, or so large that the noised
            integers would no longer be exact.
    """
    if not (math.isfinite(noise_multiplier) and noise_multiplier > 0):
        raise PrivacyError(f"noise_multiplier must be positive and finite, got {noise_multiplier}")
    grid = clipped_sum.grid
    stddev_units = noise_multiplier * grid.sensitivity / grid.step
    if stddev_units > _LARGEST_STDDEV_UNITS:
        raise PrivacyError(
            f"noise_multiplier {noise_multiplier:g} is too large for exact sums over "
            f"{grid.dimension} coordinates"
        )
    released = {}
    for name, units in clipped_sum.units.items():
        # The sign of a zero would tell the signs of what made it: -0.0 + 0.0 is 0.0.
        noise = np.rint(stddev_units * standard_normal(units.numel(), keystream)) + 0.0
        noise_units = torch.from_numpy(noise).to(units.device).reshape(units.shape)
        released[name] = (units + noise_units) * grid.step
    return released
