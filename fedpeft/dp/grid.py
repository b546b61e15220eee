"""The grid on which clipped gradients are summed and noise is added.

Floating-point sums and floating-point noise both leak. The sum of rounded numbers depends on the
order of its terms, so that one example can move it by more than the clip norm (Casacuberta et al.,
2022, "Widespread Underestimation of Sensitivity in Differentially Private Libraries"). And not
every double is a possible output of `value + noise`, so the low bits betray the value (Mironov,
2012, "On Significance of the Least Significant Bits for Differential Privacy").

So everything that touches private data is an integer multiple of one public grid step: each
clipped example is rounded to the grid before it is summed, the integers are summed exactly, and the
noise is an integer as well. The released number is `step * (integer + integer)`: its low bits say
nothing that the integer noise does not hide (the construction of Google's DP team, 2020, "Secure
Noise Generation"). The price is a sensitivity that grows by the rounding error of one example,
`step * sqrt(dimension) / 2`, which `sensitivity` states and the noise then covers.
"""

import math
from dataclasses import dataclass

from fedpeft.errors import PrivacyError

_SLACK = 2.0**-10  # how much of the clip norm the rounding may cost at most: 0.1 %
_EXACT_SUM = 2.0**53  # integers that a double holds
# Beyond these a float32 gradient times 1/step, or the released float32, overflows to Inf or NaN.
SMALLEST_CLIP_NORM, LARGEST_CLIP_NORM = 1e-18, 1e18


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A public rounding step, and the L2 sensitivity of a sum of clipped, rounded examples.

    Attributes:
        step: Spacing of the grid, a power of two.
        l2_clip_norm: Bound on one example's gradient before rounding.
        dimension: Number of coordinates, over all trained tensors.
        cross_talk: Share of the clip norm by which one example may change what the others add.
    """

    step: float
    l2_clip_norm: float
    dimension: int
    cross_talk: float = 0.0

    @classmethod
    def for_clip_norm(cls, l2_clip_norm: float, dimension: int, cross_talk: float = 0.0) -> "Grid":
        """Returns the coarsest power-of-two grid that costs at most 0.1 % in sensitivity."""
        if not SMALLEST_CLIP_NORM <= l2_clip_norm <= LARGEST_CLIP_NORM:
            raise PrivacyError(
                f"l2_clip_norm must lie in [{SMALLEST_CLIP_NORM:g}, {LARGEST_CLIP_NORM:g}], "
                f"got {l2_clip_norm}"
            )
        if not 0 <= cross_talk < 1:
            raise PrivacyError(f"cross_talk must lie in [0, 1), got {cross_talk}")
        if dimension < 1:
            raise PrivacyError("there is no trainable tensor to clip")
        widest = 2 * _SLACK * l2_clip_norm / math.sqrt(dimension)
        step = 2.0 ** math.floor(math.log2(widest))
        return cls(step=step, l2_clip_norm=l2_clip_norm, dimension=dimension, cross_talk=cross_talk)

    @property
    def sensitivity(self) -> float:
        """L2 change of the sum when one example is added or removed, rounding included."""
        return self.l2_clip_norm * (1 + self.cross_talk) + self.step * math.sqrt(self.dimension) / 2

    @property
    def max_examples(self) -> int:
        """How many examples can be summed before a coordinate could leave the exact integers."""
        return int(_EXACT_SUM // (2 + 2 * self.l2_clip_norm / self.step))
