import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft.adapters.initializers import Init, initial_lora_a


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weight(d_out: int, d_in: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(d_out, d_in, generator=generator(seed))


@pytest.mark.parametrize("init", ["kaiming", "orthonormal", "principal"])
@given(d_out=st.integers(1, 20), d_in=st.integers(1, 20), data=st.data())
@settings(max_examples=25, deadline=None)
def test_shape_and_dtype(init: Init, d_out: int, d_in: int, data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, min(d_out, d_in)))
    weight_OI = weight(d_out, d_in)
    lora_a = initial_lora_a(weight_OI, rank, init, generator())
    assert lora_a.shape == (rank, d_in)
    assert lora_a.dtype == torch.float32
    assert torch.isfinite(lora_a).all()
    assert torch.equal(weight_OI, weight(d_out, d_in)), "the weight was changed"


def test_kaiming_is_uniform_within_its_bound() -> None:
    d_in = 100
    lora_a = initial_lora_a(weight(80, d_in), 80, "kaiming", generator())
    bound = 1 / math.sqrt(d_in)
    assert lora_a.abs().max() <= bound
    # 8000 draws: the largest is near the bound, the variance is bound^2 / 3 to 5 %, the mean is 0.
    assert lora_a.abs().max() > 0.99 * bound
    assert lora_a.square().mean() == pytest.approx(bound**2 / 3, rel=0.05)
    assert abs(lora_a.mean()) < 4 * bound / math.sqrt(3 * 8000)


@pytest.mark.parametrize("init", ["orthonormal", "principal"])
def test_rows_are_orthonormal(init: Init) -> None:
    lora_a = initial_lora_a(weight(40, 50), 16, init, generator()).double()
    assert (lora_a @ lora_a.T - torch.eye(16)).abs().max() < 1e-6


def test_orthonormal_rows_point_anywhere() -> None:
    """The mean of the projections x^T AA^T x over draws is rank / d_in for every direction x."""
    draws = torch.stack(
        [initial_lora_a(weight(8, 8), 2, "orthonormal", generator(seed)) for seed in range(400)]
    )
    energy = draws.square().sum(1).mean(0)
    assert torch.allclose(energy, torch.full((8,), 2 / 8), atol=0.04)


@pytest.mark.parametrize("shape", [(30, 20), (20, 30)])
def test_principal_rows_are_the_top_right_singular_vectors(shape: tuple[int, int]) -> None:
    weight_OI = weight(*shape)
    lora_a = initial_lora_a(weight_OI, 5, "principal", generator()).double()
    gram_II = weight_OI.double().T @ weight_OI.double()
    values, vectors = torch.linalg.eigh(gram_II)
    top = vectors[:, -5:].flip(1).T
    assert ((top * lora_a).sum(1).abs() - 1).abs().max() < 1e-6
    assert torch.allclose((weight_OI.double() @ lora_a.T).norm(dim=0).square(), values[-5:].flip(0))


def test_principal_signs_do_not_depend_on_the_solver() -> None:
    weight_OI = weight(30, 20)
    mirrored = initial_lora_a(-weight_OI, 5, "principal", generator(1))
    lora_a = initial_lora_a(weight_OI, 5, "principal", generator(0))
    assert torch.allclose(lora_a, mirrored, atol=1e-6)
    largest = lora_a.gather(1, lora_a.abs().argmax(1, keepdim=True))
    assert (largest > 0).all()


@pytest.mark.parametrize("init", ["kaiming", "orthonormal"])
def test_only_the_generator_decides(init: Init) -> None:
    torch.manual_seed(0)
    first = initial_lora_a(weight(9, 9), 4, init, generator(5))
    torch.manual_seed(1)
    assert torch.equal(first, initial_lora_a(weight(9, 9, seed=1), 4, init, generator(5)))
    assert not torch.equal(first, initial_lora_a(weight(9, 9), 4, init, generator(6)))
