from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from fedpeft.dp.checks import correlation_z, p_value_of_sizes, variance_interval
from fedpeft.dp.randomness import Keystream
from fedpeft.dp.sampling import poisson_sample
from fedpeft.errors import PrivacyError

_NUM_ROWS, _PROB, _NUM_BATCHES = 60, 0.15, 4000


def _inclusions(sample: Callable[[], NDArray[np.int64]]) -> NDArray[np.float64]:
    """Who took part in each batch, shape (batches, rows)."""
    drawn = np.zeros((_NUM_BATCHES, _NUM_ROWS))
    for batch in range(_NUM_BATCHES):
        drawn[batch, sample()] = 1
    return drawn


@pytest.fixture(scope="module")
def drawn() -> NDArray[np.float64]:
    keystream = Keystream.insecure_from_seed(0)
    return _inclusions(lambda: poisson_sample(_NUM_ROWS, _PROB, keystream))


def _size_p_value(drawn: NDArray[np.float64]) -> float:
    return p_value_of_sizes(drawn.sum(1).astype(np.int64), _NUM_ROWS, _PROB)


def test_batch_sizes_are_binomial(drawn: NDArray[np.float64]):
    assert _size_p_value(drawn) > 1e-3


def test_wrong_samplers_are_told_apart():
    rng = np.random.default_rng(0)
    size = round(_NUM_ROWS * _PROB)
    shuffled = _inclusions(lambda: rng.permutation(_NUM_ROWS)[:size])
    likelier = _inclusions(lambda: np.flatnonzero(rng.random(_NUM_ROWS) < 1.2 * _PROB))
    replaced = _inclusions(lambda: rng.integers(_NUM_ROWS, size=size))
    assert max(_size_p_value(wrong) for wrong in (shuffled, likelier, replaced)) < 1e-10


def test_every_row_is_drawn_with_the_stated_probability(drawn: NDArray[np.float64]):
    stderr = np.sqrt(_PROB * (1 - _PROB) / _NUM_BATCHES)
    z = (drawn.mean(0) - _PROB) / stderr
    assert np.abs(z).max() < 4.5
    low, high = variance_interval(_NUM_ROWS)
    assert low < np.mean(z**2) < high


def test_inclusion_is_independent_across_rows_and_batches(drawn: NDArray[np.float64]):
    correlation = np.corrcoef(drawn.T) * np.sqrt(_NUM_BATCHES)
    pairs = correlation[np.triu_indices(_NUM_ROWS, 1)]
    assert np.abs(pairs).max() < 5.5
    assert abs(pairs.mean()) < 0.2
    assert abs(correlation_z(drawn[:-1], drawn[1:])) < 5
    # Fixed-size batches correlate every pair by -1/(n-1): a mean of -1.07 here.
    rng = np.random.default_rng(0)
    fixed = _inclusions(lambda: rng.permutation(_NUM_ROWS)[:9])
    of_fixed = np.corrcoef(fixed.T) * np.sqrt(_NUM_BATCHES)
    assert of_fixed[np.triu_indices(_NUM_ROWS, 1)].mean() < -0.8


def test_batch_is_increasing_row_indices():
    rows = poisson_sample(1000, 0.5, Keystream.insecure_from_seed(0))
    assert rows.dtype == np.int64
    assert np.all(np.diff(rows) > 0)
    assert rows[0] >= 0
    assert rows[-1] < 1000


def test_empty_batches_occur_as_often_as_they_should():
    keystream = Keystream.insecure_from_seed(0)
    empty = sum(len(poisson_sample(20, 0.1, keystream)) == 0 for _ in range(4000))
    assert empty / 4000 == pytest.approx(0.9**20, abs=4.5 * np.sqrt(0.1216 * 0.8784 / 4000))


def test_probability_one_draws_everyone():
    assert poisson_sample(7, 1.0, Keystream.insecure_from_seed(0)).tolist() == list(range(7))


def test_tiny_probability_draws_hardly_anyone():
    keystream = Keystream.insecure_from_seed(0)
    assert len(poisson_sample(100_000, 1e-12, keystream)) == 0
    assert len(poisson_sample(100_000, 5e-324, keystream)) == 0


class _Words(Keystream):
    """A key stream of given words."""

    def __init__(self, words: list[int]) -> None:
        super().__init__(bytes(32), secure=False)
        self._given = words

    def words(self, count: int) -> NDArray[np.uint64]:
        assert count == len(self._given)
        return np.array(self._given, dtype=np.uint64)


@pytest.mark.parametrize("prob", [0.5, 0.1, 1e-6 / 3, 2.0**-60, 1 - 2.0**-53])
def test_probability_is_never_rounded_up(prob: float):
    numerator, denominator = prob.as_integer_ratio()
    threshold = numerator * 2**64 // denominator
    coins = _Words([0, threshold - 1, threshold, 2**64 - 1])
    assert poisson_sample(4, prob, coins).tolist() == [0, 1]


@pytest.mark.parametrize("prob", [0.0, -0.1, 1.0000001, float("nan"), float("inf")])
def test_bad_probability_is_refused(prob: float):
    with pytest.raises(PrivacyError, match="sampling_prob"):
        poisson_sample(10, prob, Keystream.insecure_from_seed(0))
