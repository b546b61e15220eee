from collections.abc import Mapping

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from fedpeft.dp.checks import correlation_z, variance_interval
from fedpeft.dp.clipping import ClippedSum, empty_sum
from fedpeft.dp.grid import Grid
from fedpeft.dp.noise import add_gaussian_noise, standard_normal
from fedpeft.dp.randomness import Keystream
from fedpeft.errors import PrivacyError

_SHAPES = {"a": torch.Size([60, 100]), "b": torch.Size([120, 50]), "c": torch.Size([7])}
_GRID = Grid.for_clip_norm(0.7, sum(shape.numel() for shape in _SHAPES.values()))


def _sum_of(value: int) -> ClippedSum:
    units = {name: torch.full(shape, value, dtype=torch.float64) for name, shape in _SHAPES.items()}
    return ClippedSum(units=units, grid=_GRID, num_examples=1, num_nonfinite=0)


def _flat(tensors: Mapping[str, Tensor]) -> NDArray[np.float64]:
    return torch.cat([tensor.flatten() for tensor in tensors.values()]).numpy()


def _noise(multiplier: float, seed: int = 0) -> NDArray[np.float64]:
    return _flat(add_gaussian_noise(_sum_of(0), multiplier, Keystream.insecure_from_seed(seed)))


def _has_stddev(noise: NDArray[np.float64], stddev: float) -> bool:
    low, high = variance_interval(noise.size)
    return low <= float(np.mean((noise / stddev) ** 2)) <= high


@pytest.mark.parametrize("multiplier", [0.3, 1.0, 20.0])
def test_stddev_is_multiplier_times_sensitivity(multiplier: float):
    noise, stddev = _noise(multiplier), multiplier * _GRID.sensitivity
    assert _has_stddev(noise, stddev)
    assert not _has_stddev(noise, stddev * 2 / 3)
    assert not _has_stddev(noise, stddev * 3 / 2)
    for tensor in add_gaussian_noise(
        _sum_of(0), multiplier, Keystream.insecure_from_seed(1)
    ).values():
        assert _has_stddev(tensor.numpy().ravel(), stddev)


def test_noise_is_normal():
    noise = _noise(1.0) / _GRID.sensitivity
    assert stats.kstest(noise, "norm").pvalue > 1e-3
    # Same variance, other laws.
    laplace = stats.laplace.ppf(stats.norm.cdf(noise), scale=2**-0.5)
    uniform = stats.uniform.ppf(stats.norm.cdf(noise), -(3**0.5), 2 * 3**0.5)
    assert stats.kstest(laplace, "norm").pvalue < 1e-10
    assert stats.kstest(uniform, "norm").pvalue < 1e-10


def test_noise_is_normal_in_the_tail():
    noise = np.abs(standard_normal(2_000_000, Keystream.insecure_from_seed(0)))
    for bound in (3.0, 4.0):
        expected = 2 * stats.norm.sf(bound) * noise.size
        assert stats.poisson.cdf((noise > bound).sum(), expected) > 1e-4
        assert stats.poisson.sf((noise > bound).sum() - 1, expected) > 1e-4


def test_noise_below_a_grid_step_is_a_rounded_gaussian():
    """Where the noise is a few steps wide, its whole law shows: rounded to nearest, not down."""
    stddev_units = 0.8
    noise = _noise(stddev_units * _GRID.step / _GRID.sensitivity) / _GRID.step
    edges = np.array([-1.5, -0.5, 0.5, 1.5])
    expected = np.diff(stats.norm.cdf(edges / stddev_units), prepend=0, append=1) * noise.size

    def p_value(units: NDArray[np.float64]) -> float:
        observed = np.bincount(np.searchsorted(edges, units), minlength=5)
        return float(stats.chisquare(observed, expected).pvalue)

    assert p_value(noise) > 1e-3
    normal = stddev_units * standard_normal(noise.size, Keystream.insecure_from_seed(0))
    assert p_value(np.floor(normal)) < 1e-10


def test_noise_is_independent_across_coordinates_tensors_and_calls():
    keystream = Keystream.insecure_from_seed(0)
    first, second = (add_gaussian_noise(_sum_of(0), 1.0, keystream) for _ in range(2))
    a, b = first["a"].numpy().ravel(), first["b"].numpy().ravel()
    pairs = {
        "neighbours": (a[:-1], a[1:]),
        "halves, which share a radius": (a[:3000], a[3000:]),
        "tensors": (a, b),
        "calls": (_flat(first), _flat(second)),
    }
    for what, (left, right) in pairs.items():
        assert abs(correlation_z(left, right)) < 5, what
        assert abs(correlation_z(left**2, right**2)) < 5, what
    assert abs(correlation_z(a, a)) > 50


def test_odd_counts_are_a_prefix_of_even_ones():
    even, odd = (standard_normal(n, Keystream.insecure_from_seed(0)) for n in (10, 9))
    assert np.array_equal(even[:9], odd)
    assert standard_normal(0, Keystream.insecure_from_seed(0)).size == 0


@pytest.mark.parametrize("multiplier", [1e-6, 0.5, 1e6])
def test_released_numbers_are_integers_on_the_grid(multiplier: float):
    released = _flat(add_gaussian_noise(_sum_of(3), multiplier, Keystream.insecure_from_seed(0)))
    units = released / _GRID.step
    assert np.array_equal(units, np.rint(units))
    assert np.abs(units).max() < 2**53


@pytest.mark.parametrize("value", [1, -12_345, 2**51 - 1])
def test_noise_does_not_look_at_the_value(value: int):
    with_value, without = (
        _flat(add_gaussian_noise(_sum_of(v), 1.0, Keystream.insecure_from_seed(0)))
        for v in (value, 0)
    )
    assert np.array_equal(with_value - without, np.full_like(without, value * _GRID.step))


def test_empty_sum_is_noised_like_any_other():
    empty = empty_sum(_SHAPES, _GRID, torch.device("cpu"))
    released = _flat(add_gaussian_noise(empty, 1.0, Keystream.insecure_from_seed(0)))
    assert np.array_equal(released, _noise(1.0))


def test_sign_of_zero_tells_nothing():
    """A sum of -0.0 and one of 0.0 release the same bits."""
    outputs = []
    for zero in (0.0, -0.0):
        units = {n: torch.full(shape, zero, dtype=torch.float64) for n, shape in _SHAPES.items()}
        clipped = ClippedSum(units=units, grid=_GRID, num_examples=1, num_nonfinite=0)
        noise = add_gaussian_noise(clipped, 1e-6, Keystream.insecure_from_seed(0))
        outputs.append(_flat(noise).tobytes())
    assert outputs[0] == outputs[1]


class _Words(Keystream):
    """A key stream of given words."""

    def __init__(self, *words: int) -> None:
        super().__init__(bytes(32), secure=False)
        self._given = words

    def words(self, count: int) -> NDArray[np.uint64]:
        assert count == len(self._given)
        return np.array(self._given, dtype=np.uint64)


def test_extreme_words_give_finite_noise():
    last = 2**64 - 1
    assert standard_normal(1, _Words(last, last, 0))[0] == 0
    assert standard_normal(1, _Words(0, 0, 0))[0] == pytest.approx(13.32, abs=0.01)


def test_radius_does_not_jump_in_the_tail():
    """Where the first word is tiny, the second one still moves the radius, by little.

    With 64 bits under the logarithm, radii near 8.9 deviations lie 6e-4 apart: hundreds of grid
    steps in a million coordinates, so that two released numbers would show their common circle.
    """
    grid = Grid.for_clip_norm(1.0, 10**6)
    near, next_one, next_word = (
        standard_normal(1, _Words(high, low, 0))[0]
        for high, low in ((200, 2**62), (200, 2**62 + 2**30), (201, 2**62))
    )
    assert near > 8.8
    assert 0 < (near - next_one) * grid.sensitivity / grid.step < 1e-3
    assert (near - next_word) * grid.sensitivity / grid.step > 100


@pytest.mark.parametrize("multiplier", [0.0, -1.0, float("nan"), float("inf"), 1e200])
def test_bad_multiplier_is_refused(multiplier: float):
    with pytest.raises(PrivacyError, match="noise_multiplier"):
        add_gaussian_noise(_sum_of(0), multiplier, Keystream.insecure_from_seed(0))
