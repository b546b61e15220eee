"""Every combiner against a naive reference, in NumPy and one value at a time."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fedpeft.federated.aggregators.combiners import (
    Median,
    MultiKrum,
    NormBound,
    TrimmedMean,
    WeightedMean,
)
from tests.federated.robust_updates import flat, round_of, vectors

Rows = NDArray[np.float64]


def naive_trimmed(rows: Rows, num_trimmed: int) -> Rows:
    columns = [sorted(column)[num_trimmed : len(column) - num_trimmed] for column in rows.T]
    return np.array([math.fsum(column) / len(column) for column in columns])


def naive_krum(rows: Rows, num_byzantine: int) -> list[int]:
    """The places of the selected updates, Blanchard et al.'s definition word for word."""
    count = len(rows) - num_byzantine - 2
    scores = []
    for i, row in enumerate(rows):
        others = [float(((row - other) ** 2).sum()) for j, other in enumerate(rows) if j != i]
        scores.append(math.fsum(sorted(others)[:count]))
    return sorted(sorted(range(len(rows)), key=scores.__getitem__)[:count])


def as_rows(sent: torch.Tensor) -> Rows:
    return sent.double().numpy()


def equals_rounded(found: torch.Tensor, expected: Rows) -> bool:
    """To the last bit of float32, but for a tie that float64 rounded the other way."""
    return torch.allclose(found, torch.from_numpy(expected), rtol=1.2e-7, atol=1e-300)


@pytest.mark.parametrize("weights", [[1.0] * 4, [0.5, 2.0, 1.0, 7.0]], ids=str)
def test_weighted_mean(weights: list[float]) -> None:
    sent = vectors(4)
    found = flat(WeightedMean().combine(round_of(sent, weights=weights)).tensors)
    assert equals_rounded(found, np.average(as_rows(sent), axis=0, weights=weights))


@pytest.mark.parametrize("bound", [1e-3, 3.0, 5.9])
@pytest.mark.parametrize("weights", [[1.0] * 4, [0.5, 2.0, 1.0, 7.0]], ids=str)
def test_norm_bound(bound: float, weights: list[float]) -> None:
    """Clipped is what a client changed, over all tensors at once, not what it sent."""
    start = 10 * vectors(1, seed=4)[0]
    sent = start + vectors(4, seed=1) * torch.tensor([[0.5], [1.0], [2.0], [0.1]])
    found = NormBound(max_update_norm=bound).combine(round_of(sent, start, weights))
    changed = as_rows(sent) - as_rows(start)
    norms = np.linalg.norm(changed, axis=1)
    scales = np.minimum(1, bound / norms)
    expected = as_rows(start) + np.average(changed * scales[:, None], axis=0, weights=weights)
    assert equals_rounded(flat(found.tensors), expected)
    assert found.kept == pytest.approx(tuple(scales), rel=1e-12)
    assert found.diagnostics == {"num_clipped": float((norms > bound).sum())}
    assert 0 < found.diagnostics["num_clipped"] <= 4


def test_a_bound_that_nobody_reaches_changes_no_bit() -> None:
    sent, start = vectors(4), vectors(1, seed=4)[0]
    updates = round_of(sent, start, [0.5, 2.0, 1.0, 7.0])
    bounded = NormBound(max_update_norm=1e3).combine(updates)
    plain = WeightedMean().combine(updates)
    assert torch.equal(flat(bounded.tensors), flat(plain.tensors))
    assert bounded.kept == (1.0,) * 4
    assert bounded.shares == plain.shares


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 10])
def test_median(count: int) -> None:
    sent = vectors(count, seed=count)
    found = Median().combine(round_of(sent))
    assert equals_rounded(flat(found.tensors), np.median(as_rows(sent), axis=0))
    # Each coordinate has one middle value, or two.
    assert sum(found.kept) == pytest.approx(1 if count % 2 else 2)
    assert found.diagnostics == {"num_trimmed": count - (1 if count % 2 else 2)}


@pytest.mark.parametrize(
    ("count", "num_byzantine"), [(3, 1), (4, 1), (9, 1), (9, 3), (9, 4), (10, 4)]
)
def test_trimmed_mean(count: int, num_byzantine: int) -> None:
    sent = vectors(count, seed=count)
    found = TrimmedMean(num_byzantine=num_byzantine).combine(round_of(sent))
    assert equals_rounded(flat(found.tensors), naive_trimmed(as_rows(sent), num_byzantine))
    assert sum(found.kept) == pytest.approx(count - 2 * num_byzantine)
    assert found.diagnostics == {"num_trimmed": 2 * num_byzantine}


def test_what_is_kept_of_whom() -> None:
    """By the share of coordinates, and every one of several equal values is kept."""
    sent = torch.zeros(4, 35)
    sent[0], sent[1, :7] = 1.0, -1.0
    found = TrimmedMean(num_byzantine=1).combine(round_of(sent))
    assert found.kept == pytest.approx((0.0, 28 / 35, 1.0, 1.0))


@pytest.mark.parametrize(
    ("count", "num_byzantine"), [(5, 1), (6, 1), (9, 1), (7, 2), (9, 3), (12, 3)]
)
def test_multi_krum(count: int, num_byzantine: int) -> None:
    krum = MultiKrum(num_byzantine=num_byzantine)
    for seed in range(20):  # one neighbour more or fewer seldom changes the choice
        sent = vectors(count, seed=seed)
        found = krum.combine(round_of(sent))
        selected = naive_krum(as_rows(sent), num_byzantine)
        assert equals_rounded(flat(found.tensors), as_rows(sent)[selected].mean(0))
        assert [i for i, kept in enumerate(found.kept) if kept == 1] == selected
        assert set(found.kept) == {0.0, 1.0}
        assert found.diagnostics == {"num_selected": count - num_byzantine - 2}


def test_krum_sees_all_tensors_at_once() -> None:
    """Two clients that are odd in one tensor each are closer than one that is in both."""
    sent = vectors(5) / 100
    sent[0, :5] += 1  # the first tensor
    sent[1, -2:] += 1  # the last
    sent[2] += 1
    found = MultiKrum(num_byzantine=1).combine(round_of(sent))
    assert found.kept == (0.0, 0.0, 0.0, 1.0, 1.0)
    assert naive_krum(as_rows(sent), 1) == [3, 4]
