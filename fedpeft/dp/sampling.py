"""Poisson sampling: each example enters a batch on its own coin.

The amplification that the accountant counts holds for this scheme alone. A shuffled epoch is not
Poisson sampling, and its true epsilon can be several times larger (Chua et al., 2024, "How Private
are DP-SGD Implementations?").
"""

import math

import numpy as np
from numpy.typing import NDArray

from fedpeft.dp.randomness import Keystream
from fedpeft.errors import PrivacyError

_WORD = 2**64


def poisson_sample(
    num_examples: int, sampling_prob: float, keystream: Keystream
) -> NDArray[np.int64]:
    """Draws one Poisson batch.

    Args:
        num_examples: Size of the client's data set.
        sampling_prob: Probability of each example, in (0, 1].
        keystream: Source of the coins; secret coins are what amplification rests on.

    Returns:
        The indices of the batch in increasing order, shape (batch,). May be empty: an empty batch
        is a step like any other and must still release noise.

    Raises:
        PrivacyError: If the probability does not lie in (0, 1].
    """
    if not (math.isfinite(sampling_prob) and 0 < sampling_prob <= 1):
        raise PrivacyError(f"sampling_prob must lie in (0, 1], got {sampling_prob}")
    coins = keystream.words(num_examples)
    if sampling_prob == 1:
        return np.arange(num_examples)
    # Rounded down: an example is never likelier to be drawn than the accountant was told.
    threshold = np.uint64(math.floor(sampling_prob * _WORD))
    return np.flatnonzero(coins < threshold)
