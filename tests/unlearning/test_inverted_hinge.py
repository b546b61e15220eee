"""The inverted hinge loss against its closed-form gradient."""

import pytest
import torch
from torch import Tensor

from fedpeft.unlearning.objectives.inverted_hinge import inverted_hinge

K, V = 200, 17


def cases(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Targets at every rank, from certain to impossible."""
    generator = torch.Generator().manual_seed(3)
    scale = torch.logspace(-2, 1.5, K, dtype=dtype).unsqueeze(1)
    logits = scale * torch.randn(K, V, generator=generator, dtype=dtype)
    return logits, torch.randint(V, (K,), generator=generator)


def closed_form(logits: Tensor, targets: Tensor) -> Tensor:
    """The gradient as the paper has it, one token and one logit after the other."""
    gradient = torch.zeros_like(logits)
    for k in range(len(targets)):
        p, t = torch.softmax(logits[k], 0), int(targets[k])
        best = max((v for v in range(V) if v != t), key=lambda v: float(p[v]))
        for v in range(V):
            if v == t:
                gradient[k, v] = p[t] * (1 - p[t] + p[best])
            elif v == best:
                gradient[k, v] = p[best] * (p[best] - p[t] - 1)
            else:
                gradient[k, v] = p[v] * (p[best] - p[t])
    return gradient


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_gradient_is_the_closed_form(dtype: torch.dtype, tolerance: float) -> None:
    logits, targets = cases(dtype)
    logits.requires_grad_()
    inverted_hinge(logits, targets).sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(
        logits.grad, closed_form(logits.detach(), targets), rtol=0, atol=tolerance
    )


def test_value_is_bounded_and_moves_with_the_target() -> None:
    logits, targets = cases(torch.float64)
    loss = inverted_hinge(logits, targets)
    assert ((loss >= 0) & (loss <= 2)).all()
    sure = torch.full((1, V), -50.0, dtype=torch.float64)
    sure[0, 4] = 50.0
    assert float(inverted_hinge(sure, torch.tensor([4]))) == pytest.approx(2.0)
    assert float(inverted_hinge(sure, torch.tensor([5]))) == pytest.approx(0.0)


def test_a_runner_up_is_never_the_target() -> None:
    """With two tokens it is the other one, however unlikely."""
    loss = inverted_hinge(torch.tensor([[9.0, 0.0]]), torch.tensor([0]))
    p = torch.softmax(torch.tensor([9.0, 0.0]), 0)
    assert float(loss) == pytest.approx(float(1 + p[0] - p[1]))


@pytest.mark.parametrize(
    ("logits", "targets"), [((3, 1), (3,)), ((3, 5), (2,)), ((3,), (3,)), ((2, 3, 5), (2,))]
)
def test_shapes_that_do_not_fit_are_refused(
    logits: tuple[int, ...], targets: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="expected logits"):
        inverted_hinge(torch.zeros(logits), torch.zeros(targets, dtype=torch.long))
