"""Legend: N rows, D coordinates."""

import pytest
import torch
from torch import Tensor

from fedpeft.bench.grad_check import check_grads, check_noise, check_sum, clipped_sum, row_norms
from fedpeft.dp.grid import Grid

_N, _TOLERANCE = 5, 1e-4


@pytest.fixture
def grads() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "large": torch.randn(_N, 40, 3, generator=generator),
        "small": 0.01 * torch.randn(_N, 6, generator=generator),
    }


def plant(grads: dict[str, Tensor], bug: str) -> dict[str, Tensor]:
    wrong = {name: grad.clone() for name, grad in grads.items()}
    match bug:
        case "rows mixed up":
            wrong["large"] = wrong["large"].roll(1, 0)
        case "one row of a small tensor":
            wrong["small"][3] *= 1.01
        case "mean instead of sum":
            wrong = {name: grad / _N for name, grad in wrong.items()}
        case "a tensor forgotten":
            del wrong["small"]
        case "a tensor too many":
            wrong["other"] = torch.zeros(_N, 2)
        case "a row forgotten":
            wrong["large"] = wrong["large"][1:]
        case "not a number":
            wrong["large"][2, 0, 0] = torch.nan
    return wrong


def test_equal_gradients_pass(grads: dict[str, Tensor]):
    rounded = {name: grad * (1 + 1e-6) for name, grad in grads.items()}
    assert check_grads("a", rounded, grads, _TOLERANCE).has_passed


@pytest.mark.parametrize(
    "bug",
    [
        "rows mixed up",
        "one row of a small tensor",
        "mean instead of sum",
        "a tensor forgotten",
        "a tensor too many",
        "a row forgotten",
        "not a number",
    ],
)
def test_a_planted_bug_fails(grads: dict[str, Tensor], bug: str):
    check = check_grads("a", plant(grads, bug), grads, _TOLERANCE)
    assert not check.has_passed
    assert check.error is None or check.error > 50 * _TOLERANCE


def test_rows_are_clipped_over_all_tensors_at_once(grads: dict[str, Tensor]):
    norm_N = row_norms(grads)
    clip = float(norm_N.median())
    expected = sum(
        grads["large"][n].double() * min(1.0, clip / float(norm_N[n])) for n in range(_N)
    )
    assert isinstance(expected, Tensor)
    torch.testing.assert_close(clipped_sum(grads, clip)["large"], expected)


@pytest.mark.parametrize(
    ("factor", "passes"), [(1.0, True), (1.0005, True), (1.01, False), (0.99, False)]
)
def test_sums_may_differ_by_the_grid_and_no_more(
    grads: dict[str, Tensor], factor: float, passes: bool
):
    """Rows that point the same way: a wrong clip norm shows in full."""
    same = {name: grad[:1].expand_as(grad) for name, grad in grads.items()}
    clip = float(row_norms(same)[0]) / 2
    grid = Grid.for_clip_norm(clip, 126)
    total = clipped_sum(same, clip)
    found = {name: tensor * factor for name, tensor in total.items()}
    assert check_sum("a", found, total, grid, _N, _TOLERANCE).has_passed is passes


@pytest.mark.parametrize(
    ("scale", "passes"), [(1.0, True), (2 / 3, False), (3 / 2, False), (0.0, False)]
)
def test_noise_of_another_size_fails(scale: float, passes: bool):
    generator = torch.Generator().manual_seed(1)
    total = {"a": torch.randn(500, generator=generator), "b": torch.randn(3000)}
    released = {
        name: tensor + scale * 0.7 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in total.items()
    }
    assert check_noise("a", released, total, 0.7).has_passed is passes
