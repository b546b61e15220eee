"""The refactorization of FedSVD: exact, and never outside the row space of A."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedpeft.errors import AdapterError
from fedpeft.federated.aggregators.refactorize import (
    is_orthonormal,
    orthonormal_basis,
    refactorize_qr,
    refactorize_svd,
)

Refactorize = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
BOTH = pytest.mark.parametrize("refactorize", [refactorize_svd, refactorize_qr])
O, I, R = 11, 13, 4  # noqa: E741


def factors(seed: int = 0, *, orthonormal: bool = False) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    a, b = torch.randn(R, I, generator=draw), torch.randn(O, R, generator=draw)
    return (torch.linalg.qr(a.T).Q.T.contiguous() if orthonormal else a), b


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def product(a: Tensor, b: Tensor) -> Tensor:
    return b.double() @ a.double()


def outside(rows: Tensor, a: Tensor) -> float:
    """Length of the part of `rows` that leaves the row space of `a`."""
    norms = a.double().norm(dim=1, keepdim=True)
    unit = a.double() / norms.where(norms > 0, 1)
    basis = torch.linalg.svd(unit, full_matrices=False).Vh
    rank = int(torch.linalg.matrix_rank(unit, rtol=1e-6))
    inside = rows.double() @ basis[:rank].T @ basis[:rank]
    return float((rows.double() - inside).norm(dim=1).max())


def plain_svd(lora_a: Tensor, lora_b: Tensor) -> tuple[Tensor, Tensor]:
    """What the paper's formula does where B·A has fewer ranks than A: it makes directions up."""
    u, sigma, vt = torch.linalg.svd(product(lora_a, lora_b), full_matrices=False)
    rank = lora_a.shape[0]
    return vt[:rank].float(), (u[:, :rank] * sigma[:rank]).float()


@BOTH
@pytest.mark.parametrize("orthonormal", [True, False])
@pytest.mark.parametrize("a_scale", [1e-20, 1.0, 1e15])
@pytest.mark.parametrize("b_scale", [1e-15, 1.0, 1e15])
def test_the_product_stays_at_every_magnitude(
    refactorize: Refactorize, orthonormal: bool, a_scale: float, b_scale: float
) -> None:
    a, b = factors(orthonormal=orthonormal)
    a, b = a * a_scale, b * b_scale
    new_a, new_b = refactorize(a, b)
    assert relative(product(new_a, new_b), product(a, b)) < 1e-6
    assert is_orthonormal(new_a)
    assert outside(new_a, a) < 1e-6


def test_svd_has_the_singular_values_and_vectors_of_the_product() -> None:
    a, b = factors()
    new_a, new_b = refactorize_svd(a, b)
    u, sigma, vt = torch.linalg.svd(product(a, b), full_matrices=False)
    assert torch.allclose(new_b.double().norm(dim=0), sigma[:R], rtol=1e-6)
    assert torch.allclose((new_a.double() * vt[:R]).sum(1).abs(), torch.ones(R).double(), atol=1e-6)
    assert relative(new_b.double().norm(dim=0).diag(), (u.T @ new_b.double())[:R].abs()) < 1e-5
    assert sigma[R:].max() < 1e-12


@given(seed=st.integers(0, 10**6), o=st.integers(1, 9), i=st.integers(1, 9), r=st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_any_shape_also_ranks_above_the_sizes(seed: int, o: int, i: int, r: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    a, b = torch.randn(r, i, generator=draw), torch.randn(o, r, generator=draw)
    for refactorize in (refactorize_svd, refactorize_qr):
        new_a, new_b = refactorize(a, b)
        assert new_a.shape == a.shape
        assert new_b.shape == b.shape
        # A nearly dependent A may cancel in the product: measured against the factors.
        difference = (product(new_a, new_b) - product(a, b)).norm()
        assert difference <= 1e-6 * a.double().norm() * b.double().norm()
        assert outside(new_a, a) < 1e-6


@BOTH
@pytest.mark.parametrize("orthonormal", [True, False])
def test_zero_b_leaves_exactly_the_row_space(refactorize: Refactorize, orthonormal: bool) -> None:
    a, _ = factors(orthonormal=orthonormal)
    new_a, new_b = refactorize(a, torch.zeros(O, R))
    assert not new_b.any()
    assert is_orthonormal(new_a)
    assert outside(new_a, a) < 1e-6
    assert outside(a / a.norm(dim=1, keepdim=True), new_a) < 1e-6, "a direction was lost"


def pruned(kind: str) -> tuple[Tensor, Tensor, int]:
    """Factors of lower rank, and the rank of A."""
    a, b = factors(3)
    if kind == "zero columns of B":
        b[:, 1:] = 0
        return a, b, R
    if kind == "zero rows of A":
        a[2:] = 0
        return a, b, 2
    if kind == "repeated rows of A":
        a[1], a[3] = a[0], -3 * a[0]
        return a, b, 2
    if kind == "scaled rows of A":
        a[1], a[3] = a[0] / 3, 1e-9 * a[2]
        return a, b, 2
    if kind == "rank one of both":
        a[1:] = a[:1]
        b[:, 1:] = 0
        return a, b, 1
    a[1], b[:, 1] = 0, 0
    return a, b, R - 1


KINDS = [
    "zero columns of B",
    "zero rows of A",
    "repeated rows of A",
    "scaled rows of A",
    "rank one of both",
    "one rank pruned in both",
]


@BOTH
@pytest.mark.parametrize("kind", KINDS)
def test_pruned_ranks_never_leave_the_row_space(refactorize: Refactorize, kind: str) -> None:
    a, b, rank = pruned(kind)
    new_a, new_b = refactorize(a, b)
    assert relative(product(new_a, new_b), product(a, b)) < 1e-6
    assert outside(new_a, a) < 1e-6
    assert is_orthonormal(new_a[:rank])
    assert not new_a[rank:].any(), "rows beyond the rank of A are zero"
    assert not new_b[:, rank:].any()
    again = refactorize(new_a, new_b)
    assert relative(product(*again), product(a, b)) < 1e-6
    assert outside(again[0], a) < 2e-6


@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_svd_fails_that_test(kind: str) -> None:
    """So it can fail. Where only B is rank-deficient the leak is as large as a direction."""
    a, b, _ = pruned(kind)
    new_a, new_b = plain_svd(a, b)
    assert relative(product(new_a, new_b), product(a, b)) < 1e-6
    assert outside(new_a, a) > 0.5


@BOTH
def test_nothing_at_all_stays_nothing(refactorize: Refactorize) -> None:
    new_a, new_b = refactorize(torch.zeros(R, I), torch.zeros(O, R))
    assert new_a.shape == (R, I)
    assert new_b.shape == (O, R)
    assert not new_a.any()
    assert not new_b.any()


@BOTH
def test_a_short_row_with_a_long_column_is_kept(refactorize: Refactorize) -> None:
    """Its share of the product is what counts, not its length in A."""
    a, b = factors()
    a[2] *= 1e-10
    b[:, 2] *= 1e10
    new_a, new_b = refactorize(a, b)
    assert relative(product(new_a, new_b), product(a, b)) < 1e-6


@BOTH
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused(refactorize: Refactorize, value: float) -> None:
    for which in (0, 1):
        pair = [tensor.clone() for tensor in factors()]
        pair[which][0, 0] = value
        with pytest.raises(AdapterError, match="cannot refactorize"):
            refactorize(*pair)


@BOTH
def test_inputs_stay(refactorize: Refactorize) -> None:
    a, b = factors()
    refactorize(a, b)
    assert torch.equal(a, factors()[0])
    assert torch.equal(b, factors()[1])


def test_the_basis_gives_a_back_without_float32_rounding() -> None:
    for orthonormal in (True, False):
        a, _ = factors(orthonormal=orthonormal)
        mix, q = orthonormal_basis(a)
        assert relative(mix @ q, a.double()) < 1e-12
        assert (q @ q.T - torch.eye(R).double()).abs().max() < 1e-12


def test_what_counts_as_orthonormal() -> None:
    a, _ = factors(orthonormal=True)
    assert is_orthonormal(a)
    assert not is_orthonormal(a * 1.001)
    assert not is_orthonormal(torch.cat([a[:1], a[:1]]))
    assert not is_orthonormal(torch.cat([a[:1], torch.zeros(1, I)]))


def test_many_rounds_do_not_drift() -> None:
    """200 refactorizations: the product to 1e-5, the row space of the first A to 1e-5."""
    a, b = factors()
    first_a, expected = a, product(a, b)
    for _ in range(200):
        a, b = refactorize_svd(a, b)
    assert relative(product(a, b), expected) < 1e-5
    assert outside(a, first_a) < 1e-5
    assert is_orthonormal(a)
