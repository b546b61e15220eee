"""Legend: N rows, D coordinates."""

import math
from collections.abc import Mapping
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from torch import Tensor

from fedpeft.dp import clipping
from fedpeft.dp.clipping import ClippedSum, clip_and_sum, empty_sum
from fedpeft.dp.grid import Grid
from fedpeft.errors import PrivacyError

_CPU = torch.device("cpu")
_D = 7

_any_float32 = st.one_of(
    st.floats(width=32),  # with NaN, both infinities, denormals and 3e38
    st.sampled_from([0.0, -0.0, 1e-45, 1e-38, 1e30, -1e30, 0.37, -0.37]),
    st.floats(-2, 2, width=32),
)
_rows = hnp.arrays(np.float32, st.tuples(st.integers(1, 6), st.just(_D)), elements=_any_float32)
_clip_norms = st.sampled_from([1e-18, 1e-3, 0.7, 1.0, 3.0, 1e6, 1e18])


def _split(rows_ND: NDArray[np.float32] | Tensor) -> dict[str, Tensor]:
    """Two tensors of different shapes."""
    rows = torch.as_tensor(rows_ND)
    return {"a": rows[:, :3].reshape(-1, 3, 1), "b": rows[:, 3:].reshape(-1, 2, 2)}


def _clip(rows_ND: NDArray[np.float32] | Tensor, grid: Grid) -> ClippedSum:
    return clip_and_sum(_split(rows_ND), grid)


def _flat(units: Mapping[str, Tensor]) -> NDArray[np.float64]:
    return torch.cat([tensor.flatten() for tensor in units.values()]).numpy()


def _naive(rows_ND: NDArray[np.float32], clip_norm: float) -> NDArray[np.float64]:
    """Clips in float64, one row at a time, and does not round; shape (D,)."""
    total_D = np.zeros(rows_ND.shape[1])
    for row_D in rows_ND.astype(np.float64):
        norm = math.sqrt(math.fsum(value * value for value in row_D))
        if math.isfinite(norm):
            total_D += row_D * min(1.0, clip_norm / norm if norm else 1.0)
    return total_D


def _within_sensitivity(units_D: NDArray[np.float64], grid: Grid) -> bool:
    """Whether an integer vector's norm is at most the sensitivity, without any rounding."""
    squares = sum(int(unit) ** 2 for unit in units_D)
    return squares <= (Fraction(grid.sensitivity) / Fraction(grid.step)) ** 2


@settings(deadline=None)
@given(_rows, _clip_norms)
def test_equals_a_naive_clip_up_to_rounding(rows_ND: NDArray[np.float32], clip_norm: float):
    grid = Grid.for_clip_norm(clip_norm, _D)
    clipped = _flat(_clip(rows_ND, grid).units) * grid.step
    allowed = len(rows_ND) * (grid.step / 2 + 2e-6 * clip_norm)
    assert np.abs(clipped - _naive(rows_ND, clip_norm)).max() <= allowed


@settings(max_examples=300, deadline=None)
@given(_rows, _clip_norms)
@example(np.full((1, _D), 3.4e38, np.float32), 1.0)
@example(np.full((1, _D), 1e-45, np.float32), 1e-18)
@example(np.full((1, _D), 0.5 / math.sqrt(_D), np.float32), 0.5)
def test_one_example_is_at_most_the_sensitivity(rows_ND: NDArray[np.float32], clip_norm: float):
    grid = Grid.for_clip_norm(clip_norm, _D)
    for row_D in rows_ND:
        units_D = _flat(_clip(row_D[None], grid).units)
        assert np.array_equal(units_D, np.rint(units_D))
        assert _within_sensitivity(units_D, grid)


@settings(deadline=None)
@given(_rows, _clip_norms, st.data())
def test_neighbours_differ_by_at_most_the_sensitivity(
    rows_ND: NDArray[np.float32], clip_norm: float, data: st.DataObject
):
    """Whatever the row is and wherever it stands; and by exactly that row's own contribution."""
    grid = Grid.for_clip_norm(clip_norm, _D)
    row = data.draw(st.integers(0, len(rows_ND) - 1))
    with_row = _flat(_clip(rows_ND, grid).units)
    without = _clip(np.delete(rows_ND, row, 0), grid) if len(rows_ND) > 1 else None
    change_D = with_row - (0.0 if without is None else _flat(without.units))
    assert _within_sensitivity(change_D, grid)
    assert np.array_equal(change_D, _flat(_clip(rows_ND[row : row + 1], grid).units))


@settings(deadline=None)
@given(_rows)
def test_nonfinite_rows_count_as_zero(rows_ND: NDArray[np.float32]):
    grid = Grid.for_clip_norm(1.0, _D)
    finite_N = np.isfinite(rows_ND).all(1)
    clipped = _clip(rows_ND, grid)
    assert clipped.num_examples == len(rows_ND)
    assert clipped.num_nonfinite == int((~finite_N).sum())
    units_D = _flat(clipped.units)
    assert np.isfinite(units_D).all()
    if finite_N.any():
        assert np.array_equal(units_D, _flat(_clip(rows_ND[finite_N], grid).units))
    else:
        assert not units_D.any()


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("column", range(_D))
def test_one_nonfinite_coordinate_zeroes_all_tensors_of_its_row(poison: float, column: int):
    rows_ND = np.ones((1, _D), np.float32)
    rows_ND[0, column] = poison
    clipped = _clip(rows_ND, Grid.for_clip_norm(1.0, _D))
    assert clipped.num_nonfinite == 1
    assert not _flat(clipped.units).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("dimension", [1, 100, 4096])
def test_clip_holds_in_every_precision(dtype: torch.dtype, dimension: int):
    """A bfloat16 product is off by up to 0.4 %: four times what rounding may cost."""
    generator = torch.Generator().manual_seed(0)
    grid = Grid.for_clip_norm(1.0, dimension)
    scales_N1 = torch.logspace(-1, 3, 50).unsqueeze(1)
    rows_ND = (torch.randn(50, dimension, generator=generator) * scales_N1).to(dtype)
    for row_D in rows_ND:
        units_D = clip_and_sum({"a": row_D[None]}, grid).units["a"].numpy()
        assert _within_sensitivity(units_D, grid)


def test_rounding_of_float32_products_is_covered(monkeypatch: pytest.MonkeyPatch):
    """A clip norm just below a half-integer of steps, where one float32 rounding up is too much."""

    def breaches() -> int:
        count = 0
        for odd in range(513, 1023, 6):
            grid = Grid.for_clip_norm((odd + 0.5) * (1 - 2.0**-40) * 2.0**-9, 1)
            assert grid.step == 2.0**-9
            for value in (2.1, 3.3, 7.0, 1e6, 3e30):
                units_D = clip_and_sum({"a": torch.tensor([[value]])}, grid).units["a"].numpy()
                count += not _within_sensitivity(units_D, grid)
        return count

    assert breaches() == 0
    monkeypatch.setattr(clipping, "_ROUND_DOWN", 1.0)
    assert breaches() > 0


def test_clip_reaches_the_clip_norm():
    """A long row keeps its direction and gets the clip norm, to 1e-4; a short row is kept."""
    grid = Grid.for_clip_norm(2.0, 1000)
    rows_ND = torch.randn(1, 1000, generator=torch.Generator().manual_seed(0))
    direction_D = (rows_ND / rows_ND.norm()).squeeze(0).double()
    for norm, kept in ((50.0, 2.0), (2.0, 2.0), (0.5, 0.5)):
        clipped_D = clip_and_sum({"a": direction_D[None] * norm}, grid).units["a"] * grid.step
        assert float(clipped_D @ direction_D) == pytest.approx(kept, rel=1e-4)


def test_float64_whose_square_overflows_counts_as_zero():
    rows_ND = torch.tensor([[1e200, 0.0], [1.0, 0.0]], dtype=torch.float64)
    clipped = clip_and_sum({"a": rows_ND}, Grid.for_clip_norm(1.0, 2))
    assert clipped.num_nonfinite == 1
    assert clipped.units["a"].tolist()[1] == 0


@pytest.mark.parametrize("dimension", [3, 64, 1000, 20_001])
def test_sum_is_the_same_however_rows_are_cut_ordered_or_laid_out(dimension: int):
    generator = torch.Generator().manual_seed(0)
    grid = Grid.for_clip_norm(1.0, dimension)
    rows_ND = torch.randn(65, dimension, generator=generator) / math.sqrt(dimension) * 1.5
    transposed_ND = torch.empty(dimension, 65).T.copy_(rows_ND)
    shuffled = torch.randperm(65, generator=generator)
    together = clip_and_sum({"a": rows_ND}, grid).units["a"]
    for laid_out in (rows_ND, transposed_ND, rows_ND.flip(0), rows_ND[shuffled]):
        for size in (1, 2, 7, 64, 65):
            total = empty_sum({"a": torch.Size([dimension])}, grid, _CPU)
            for part in laid_out.split(size):
                total = total + clip_and_sum({"a": part}, grid)
            assert torch.equal(total.units["a"], together)
            assert total.num_examples == 65


def test_sum_of_many_rows_is_exact():
    """Beyond 2^24 a float32 sum would drop units."""
    grid = Grid(step=2.0**-20, l2_clip_norm=1.0, dimension=1)
    rows_N1 = torch.rand(201, 1, generator=torch.Generator().manual_seed(0)) / 2 + 0.4
    one_by_one = sum(int(clip_and_sum({"a": row}, grid).units["a"]) for row in rows_N1[:, None])
    assert one_by_one > 2**24
    assert int(clip_and_sum({"a": rows_N1}, grid).units["a"]) == one_by_one


def test_whole_gradient_is_clipped_not_each_tensor():
    rows_ND = np.zeros((1, _D), np.float32)
    rows_ND[0, [0, 5]] = 10.0
    grid = Grid.for_clip_norm(1.0, _D)
    clipped_D = _flat(_clip(rows_ND, grid).units) * grid.step
    assert clipped_D[[0, 5]] == pytest.approx([0.5**0.5, 0.5**0.5], abs=2 * grid.step)


def test_empty_sum_is_zero_and_neutral():
    grid = Grid.for_clip_norm(1.0, _D)
    shapes = {"a": torch.Size([3, 1]), "b": torch.Size([2, 2])}
    empty = empty_sum(shapes, grid, _CPU)
    assert (empty.num_examples, empty.num_nonfinite) == (0, 0)
    one = _clip(np.ones((2, _D), np.float32), grid)
    assert np.array_equal(_flat((empty + one).units), _flat(one.units))


def test_diagnostics_add_up():
    grid = Grid.for_clip_norm(1.0, _D)
    poisoned = _clip(np.full((3, _D), np.nan, np.float32), grid)
    total = poisoned + _clip(np.ones((2, _D), np.float32), grid) + poisoned
    assert (total.num_examples, total.num_nonfinite) == (8, 6)


def test_gradients_of_other_dimension_are_refused():
    with pytest.raises(PrivacyError, match="8 coordinates, the gradients have 7"):
        _clip(np.ones((2, _D), np.float32), Grid.for_clip_norm(1.0, _D + 1))


def test_sums_on_different_grids_or_tensors_are_not_added():
    grid = Grid.for_clip_norm(1.0, _D)
    ones = np.ones((1, _D), np.float32)
    finer = _clip(ones, Grid.for_clip_norm(0.1, _D))
    renamed = clip_and_sum({"c": torch.from_numpy(ones)}, grid)
    for other in (finer, renamed):
        with pytest.raises(PrivacyError, match="cannot be added"):
            _clip(ones, grid) + other


def test_more_examples_than_are_summed_exactly_are_refused():
    grid = Grid(step=2.0**-50, l2_clip_norm=1.0, dimension=_D)
    assert grid.max_examples == 3
    three, one = (_clip(np.ones((n, _D), np.float32), grid) for n in (3, 1))
    assert three.num_examples == 3
    with pytest.raises(PrivacyError, match="at most 3 examples"):
        three + one
    with pytest.raises(PrivacyError, match="at most 3 examples"):
        _clip(np.ones((4, _D), np.float32), grid)


@settings(deadline=None)
@given(st.floats(1e-18, 1e18), st.integers(1, 10**10))
@example(2.0**-9, 1)
@example(1.0, 1)
@example(np.nextafter(1.0, 0.0), 4)
def test_grid_costs_at_most_a_thousandth_and_holds_exact_sums(clip_norm: float, dimension: int):
    grid = Grid.for_clip_norm(clip_norm, dimension)
    assert math.frexp(grid.step)[0] == 0.5
    assert 1 < grid.sensitivity / clip_norm <= 1.001
    assert grid.sensitivity / clip_norm > 1 + 0.00048  # twice as coarse would cost more than 0.1 %
    most_units = grid.max_examples * (clip_norm / grid.step + 0.5)
    assert most_units <= 2.0**53
    assert grid.max_examples >= 10**7


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, 1e-19, 1e19, 5e-324, math.inf, math.nan])
def test_bad_clip_norm_is_refused(clip_norm: float):
    """Below about 1e-35 a product with 1/step overflowed, so that a gradient of zero became NaN."""
    with pytest.raises(PrivacyError, match="l2_clip_norm"):
        Grid.for_clip_norm(clip_norm, 10**6)


def test_nothing_to_clip_is_refused():
    with pytest.raises(PrivacyError, match="no trainable tensor"):
        Grid.for_clip_norm(1.0, 0)
