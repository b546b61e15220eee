"""One contract suite for every combiner."""

import itertools
import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from fedpeft.errors import AdapterError
from fedpeft.federated.aggregators.combiners import Combiner, MultiKrum, NormBound, TrimmedMean
from fedpeft.federated.robustness import Combination
from tests.federated.robust_updates import (
    COMBINERS,
    COUNT_CLIENTS,
    SHAPES,
    flat,
    round_of,
    shaped,
    vectors,
)
from tests.tiny_models import equal_tensors

FEW = 6


@pytest.fixture(params=sorted(COMBINERS))
def combiner(request: pytest.FixtureRequest) -> Combiner:
    return COMBINERS[request.param]


def combined(combiner: Combiner, sent: Tensor, start: Tensor | None = None) -> Tensor:
    return flat(combiner.combine(round_of(sent, start)).tensors)


def test_every_combiner_of_the_configuration_is_here() -> None:
    assert set(COMBINERS) == set(get_args(Combination))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_only_trained_tensors_in_their_own_shapes_and_types(
    combiner: Combiner, dtype: torch.dtype
) -> None:
    found = combiner.combine(round_of(vectors(FEW, dtype=dtype))).tensors
    assert {name: (t.shape, t.dtype) for name, t in found.items()} == {
        name: (shape, dtype) for name, shape in SHAPES.items()
    }


def test_the_inputs_are_not_modified(combiner: Combiner) -> None:
    sent, start = 3 * vectors(FEW), vectors(1, seed=9)[0]
    updates = round_of(sent, start)
    combiner.combine(updates)
    assert equal_tensors(updates.start, shaped(start))
    assert all(equal_tensors(u, shaped(row)) for u, row in zip(updates.sent, sent, strict=True))


def test_the_order_of_the_clients_does_not_matter(combiner: Combiner) -> None:
    sent = vectors(5)
    expected = combiner.combine(round_of(sent))
    for order in itertools.permutations(range(5)):
        found = combiner.combine(round_of(sent[list(order)]))
        assert torch.allclose(flat(found.tensors), flat(expected.tensors), rtol=1e-6)
        if expected.kept:
            assert found.kept == tuple(expected.kept[i] for i in order)
        assert found.diagnostics == expected.diagnostics


def test_equal_scores_and_equal_values_are_told_apart_by_no_order(combiner: Combiner) -> None:
    """The corners of a square lie alike to each other: any choice among them is a tie."""
    step = vectors(2)
    corners = torch.stack([step[0], -step[0], step[1], -step[1], step[0], step[1]])
    corners[2:4] *= step[0].norm() / step[1].norm()
    corners[5] *= step[0].norm() / step[1].norm()
    expected = combiner.combine(round_of(corners))
    for order in list(itertools.permutations(range(6)))[::7]:
        found = combiner.combine(round_of(corners[list(order)]))
        assert torch.allclose(flat(found.tensors), flat(expected.tensors), rtol=1e-6, atol=1e-7)


def test_it_is_the_same_every_time(combiner: Combiner) -> None:
    sent = vectors(FEW).repeat(2, 1)
    first, second = combiner.combine(round_of(sent)), combiner.combine(round_of(sent))
    assert equal_tensors(first.tensors, second.tensors)
    assert first.kept == second.kept


def test_it_moves_with_what_the_round_started_from(combiner: Combiner) -> None:
    """Only differences count: a common shift of start and updates shifts the result."""
    sent, shift = vectors(FEW, dtype=torch.float64), vectors(1, 5, torch.float64)[0]
    moved = combined(combiner, sent + shift, shift)
    assert torch.allclose(moved, combined(combiner, sent) + shift, rtol=0, atol=1e-12)


def test_updates_that_are_all_equal_are_the_result(combiner: Combiner) -> None:
    one = vectors(1) / 10
    found = combiner.combine(round_of(one.expand(FEW, -1)))
    assert torch.allclose(flat(found.tensors), one[0].double(), rtol=1e-7)
    if found.kept and found.shares is None:
        assert found.kept == (1.0,) * FEW


def test_clients_that_changed_nothing_change_nothing(combiner: Combiner) -> None:
    """Zero norms, zero distances."""
    start = vectors(1)
    found = combiner.combine(round_of(start.expand(FEW, -1), start[0]))
    assert torch.allclose(flat(found.tensors), start[0].double(), rtol=1e-7)
    assert all(math.isfinite(value) for value in (*found.kept, *found.diagnostics.values()))


def test_one_client_that_changed_nothing_among_others(combiner: Combiner) -> None:
    sent = vectors(FEW)
    sent[2] = 0
    found = combiner.combine(round_of(sent))
    assert torch.isfinite(flat(found.tensors)).all()
    assert found.kept == () or 0 <= found.kept[2] <= 1


def test_the_fewest_updates_are_enough_and_one_fewer_are_not(combiner: Combiner) -> None:
    needed = combiner.min_num_updates
    combiner.combine(round_of(vectors(needed)))
    if needed > 1:
        with pytest.raises(AdapterError, match=f"{combiner.name} needs at least {needed} updates"):
            combiner.combine(round_of(vectors(needed - 1)))


@pytest.mark.parametrize("name", sorted(n for n, c in COMBINERS.items() if c.min_num_updates == 1))
def test_a_single_update_is_the_result(name: str) -> None:
    one = vectors(1) / 10
    assert torch.equal(combined(COMBINERS[name], one), one[0].double())


@pytest.mark.parametrize("largest", [1e30, 3.4e38])
def test_the_largest_float32_values_overflow_nothing(combiner: Combiner, largest: float) -> None:
    sent = vectors(FEW)
    sent[0], sent[1] = largest, -largest
    found = combiner.combine(round_of(sent))
    assert torch.isfinite(flat(found.tensors)).all()
    assert all(math.isfinite(value) for value in (*found.kept, *found.diagnostics.values()))


def test_arithmetic_is_in_float64(combiner: Combiner) -> None:
    """In float32 everything that distinguishes these updates would be rounded away."""
    differences = vectors(FEW, dtype=torch.float64)
    start = torch.full_like(differences[0], 2.0**20)
    sent = (start + differences).float()
    exact = combined(combiner, sent.double() - start, torch.zeros_like(start))
    found = combined(combiner, sent, start.float()) - start
    half_spacing = 2.0**-4  # of float32 at 2**20
    assert (found - exact).abs().max() <= half_spacing * (1 + 1e-9)


def test_values_lie_between_start_and_updates(combiner: Combiner) -> None:
    sent, start = 4 * vectors(FEW), vectors(1, seed=3)
    hull = torch.cat([sent, start]).double()
    found = combined(combiner, sent, start[0])
    assert ((hull.min(0).values <= found) & (found <= hull.max(0).values)).all()


def test_what_is_kept_and_shared_is_what_the_result_is_made_of(combiner: Combiner) -> None:
    sent = vectors(FEW)
    found = combiner.combine(round_of(sent))
    assert len(found.kept) in (0, FEW)
    assert all(0 <= kept <= 1 for kept in found.kept)
    if found.shares is not None:
        assert sum(found.shares) == pytest.approx(1, abs=1e-12)
        mean = torch.tensor(found.shares, dtype=torch.float64) @ sent.double()
        assert torch.allclose(mean, flat(found.tensors), rtol=1e-6)


def test_weights_are_honoured_or_refused(combiner: Combiner) -> None:
    sent, weights = vectors(FEW) / 10, [1.0, 1.0, 1.0, 1.0, 1.0, 5.0]
    updates = round_of(sent, weights=weights)
    if combiner.name in COUNT_CLIENTS:
        with pytest.raises(AdapterError, match=r"equal weights, got shares from 0\.1 to 0\.5"):
            combiner.combine(updates)
    else:
        ten = torch.cat([sent, sent[5:].expand(4, -1)])
        expected = combined(combiner, ten)
        assert torch.allclose(flat(combiner.combine(updates).tensors), expected, rtol=1e-6)


@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan, math.inf])
def test_a_norm_bound_that_is_none_is_refused(bound: float) -> None:
    with pytest.raises(AdapterError, match="max_update_norm must be positive and finite"):
        NormBound(max_update_norm=bound)


@pytest.mark.parametrize("kind", [TrimmedMean, MultiKrum])
@pytest.mark.parametrize("count", [0, -1, 1.5, math.nan, True])
def test_a_count_of_attackers_that_is_none_is_refused(
    kind: type[TrimmedMean] | type[MultiKrum], count: int
) -> None:
    with pytest.raises(AdapterError, match="num_byzantine must be an integer of at least 1"):
        kind(num_byzantine=count)
