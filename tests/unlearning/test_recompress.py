"""Sums of low-rank updates, against the SVD of the dense matrix."""

import pytest
import torch
from torch import Tensor

from fedpeft.errors import AdapterError
from fedpeft.unlearning.recompress import LowRankTerm, recompress

ROWS, COLUMNS = 30, 22


def term(rank: int, seed: int, scaling: float = 1.0) -> LowRankTerm:
    generator = torch.Generator().manual_seed(seed)
    return LowRankTerm(
        lora_a_RI=torch.randn(rank, COLUMNS, generator=generator),
        lora_b_OR=torch.randn(ROWS, rank, generator=generator),
        scaling=scaling,
    )


def dense(*terms: LowRankTerm) -> Tensor:
    return sum(
        (t.scaling * t.lora_b_OR.double() @ t.lora_a_RI.double() for t in terms),
        torch.zeros(ROWS, COLUMNS, dtype=torch.float64),
    )


TERMS = (term(4, 1, 2.0), term(3, 2, -0.5), term(3, 3, 0.5))


@pytest.mark.parametrize("rank", [1, 4, 9])
def test_it_is_the_closest_of_its_rank(rank: int) -> None:
    found = recompress(TERMS, rank=rank, scaling=2.0)
    singular = torch.linalg.svdvals(dense(*TERMS))
    error = float((dense(found.term) - dense(*TERMS)).norm())
    assert error == pytest.approx(float(singular[rank:].norm()), rel=1e-5)
    assert found.lost_squared == pytest.approx(error**2, rel=1e-5)
    assert found.total_squared == pytest.approx(float(dense(*TERMS).norm()) ** 2, rel=1e-9)
    assert found.term.scaling == 2.0


@pytest.mark.parametrize("rank", [10, 14])
def test_with_enough_rank_nothing_is_lost(rank: int) -> None:
    found = recompress(TERMS, rank=rank, scaling=2.0)
    torch.testing.assert_close(dense(found.term), dense(*TERMS), rtol=0, atol=1e-5)
    assert found.lost_squared == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("rank", [2, 14])
def test_rows_of_a_are_orthonormal(rank: int) -> None:
    """As the next federated round expects them."""
    a = recompress(TERMS, rank=rank, scaling=1.0).term.lora_a_RI
    torch.testing.assert_close(a @ a.T, torch.eye(rank), rtol=0, atol=1e-5)


def test_terms_that_cancel_leave_nothing() -> None:
    """An unlearning that took no step: its start is added and taken away again."""
    start = term(3, 5)
    away = LowRankTerm(lora_a_RI=start.lora_a_RI, lora_b_OR=start.lora_b_OR, scaling=-1.0)
    found = recompress([TERMS[0], start, away], rank=4, scaling=2.0)
    torch.testing.assert_close(dense(found.term), dense(TERMS[0]), rtol=0, atol=1e-5)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(AdapterError, match="no update"):
        recompress([], rank=1, scaling=1.0)
    for rank in (0, COLUMNS + 1):
        with pytest.raises(AdapterError, match="does not fit"):
            recompress(TERMS, rank=rank, scaling=1.0)
    narrow = LowRankTerm(lora_a_RI=torch.zeros(2, 3), lora_b_OR=torch.zeros(ROWS, 2), scaling=1.0)
    with pytest.raises(AdapterError, match="do not fit"):
        recompress([TERMS[0], narrow], rank=1, scaling=1.0)
    broken = term(2, 1)
    broken.lora_b_OR[0, 0] = float("inf")
    with pytest.raises(AdapterError, match="NaN or infinite"):
        recompress([broken], rank=1, scaling=1.0)
