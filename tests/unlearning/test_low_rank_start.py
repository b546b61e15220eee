"""FILA: the function is kept, and the split is the best one."""

import pytest
import torch
from torch import Tensor

from fedpeft.errors import AdapterError
from fedpeft.unlearning.low_rank_start import LowRankStart, low_rank_start, relative_importance

ROWS, COLUMNS, RANK, SCALING = 40, 24, 5, 2.0


def weight_and_importance() -> tuple[Tensor, Tensor]:
    """Rows that differ in importance by six orders of magnitude."""
    generator = torch.Generator().manual_seed(11)
    weight = torch.randn(ROWS, COLUMNS, generator=generator)
    scale = torch.logspace(-3, 3, ROWS)[torch.randperm(ROWS, generator=generator)]
    return weight, scale.unsqueeze(1) * torch.rand(ROWS, COLUMNS, generator=generator)


def weighted_error(weight: Tensor, importance: Tensor, start: LowRankStart) -> float:
    approximation = SCALING * start.lora_b_OR.double() @ start.lora_a_RI.double()
    w = importance.double().sum(1).sqrt().unsqueeze(1)
    return float((w * (weight.double() - approximation)).norm())


def test_the_function_is_kept() -> None:
    weight, importance = weight_and_importance()
    start = low_rank_start(weight, importance, RANK, SCALING)
    x = torch.randn(64, COLUMNS, generator=torch.Generator().manual_seed(1))
    kept = x @ start.residual_OI.T + SCALING * x @ start.lora_a_RI.T @ start.lora_b_OR.T
    torch.testing.assert_close(kept, x @ weight.T, rtol=0, atol=1e-5)
    assert start.lora_a_RI.shape == (RANK, COLUMNS)
    assert start.lora_b_OR.shape == (ROWS, RANK)


def test_the_split_is_the_exact_optimum() -> None:
    """Its error is the tail of the weighted singular values, which no other one beats."""
    weight, importance = weight_and_importance()
    start = low_rank_start(weight, importance, RANK, SCALING)
    w = importance.double().sum(1).sqrt().unsqueeze(1)
    tail = torch.linalg.svdvals(w * weight.double())[RANK:]
    error = weighted_error(weight, importance, start)
    assert error == pytest.approx(float(tail.norm()), rel=1e-6)
    unweighted = low_rank_start(weight, torch.ones_like(importance), RANK, SCALING)
    assert weighted_error(weight, importance, unweighted) > 1.05 * error


def test_factors_are_balanced() -> None:
    """A and the weighted B share the singular values: neither starts with steps that vanish."""
    weight, importance = weight_and_importance()
    start = low_rank_start(weight, importance, RANK, SCALING)
    w = importance.double().sum(1).sqrt()
    w = (w / w.max()).unsqueeze(1)
    torch.testing.assert_close(
        (w * start.lora_b_OR.double()).norm(dim=0), start.lora_a_RI.double().norm(dim=1)
    )


def test_rows_without_importance_stay_in_the_residual() -> None:
    weight, importance = weight_and_importance()
    importance[:7] = 0
    start = low_rank_start(weight, importance, RANK, SCALING)
    assert (start.lora_b_OR[:7] == 0).all()
    torch.testing.assert_close(start.residual_OI[:7], weight[:7])


def test_without_any_importance_all_rows_count_alike() -> None:
    weight, importance = weight_and_importance()
    start = low_rank_start(weight, torch.zeros_like(importance), RANK, SCALING)
    equal = low_rank_start(weight, torch.ones_like(importance), RANK, SCALING)
    torch.testing.assert_close(start.lora_b_OR, equal.lora_b_OR)


def test_the_floor_of_an_importance_scales_with_the_data() -> None:
    """An absolute 1e-5 would swamp gradients of 1e-9, and every ratio would be the same."""
    _, importance = weight_and_importance()
    retain = importance.flip(0)
    ratio = relative_importance(importance, retain)
    tiny = relative_importance(1e-12 * importance, 1e-12 * retain)
    torch.testing.assert_close(tiny, ratio, rtol=1e-6, atol=0)
    assert float(ratio.max() / ratio.min()) > 1e6
    alone = relative_importance(importance, torch.zeros_like(retain))
    torch.testing.assert_close(alone, importance.double())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_an_importance_that_is_none_is_refused(value: float) -> None:
    _, importance = weight_and_importance()
    wrong = importance.clone()
    wrong[0, 0] = value
    for forget, retain in ((wrong, importance), (importance, wrong)):
        with pytest.raises(AdapterError, match="negative or not finite"):
            relative_importance(forget, retain)


def test_a_split_that_cannot_be_is_refused() -> None:
    weight, importance = weight_and_importance()
    for rank in (0, COLUMNS + 1):
        with pytest.raises(AdapterError, match="does not fit"):
            low_rank_start(weight, importance, rank, SCALING)
    weight[0, 0] = float("nan")
    with pytest.raises(AdapterError, match="NaN"):
        low_rank_start(weight, importance, RANK, SCALING)
    with pytest.raises(AdapterError, match="shapes"):
        relative_importance(importance, importance.T)
