"""Rounding to few bits: how far, and that it is undone."""

from pathlib import Path

import pytest
import torch
from torch import nn

from fedpeft.errors import ModelError
from fedpeft.models.base_model import load_base_model
from fedpeft.models.model_config import ModelConfig
from fedpeft.unlearning.metrics.rounded_weights import Bits, round_weight, rounded_weights


@pytest.mark.parametrize(("bits", "group"), [(8, 100), (4, 64)])
def test_values_are_multiples_of_one_scale_a_group(bits: Bits, group: int) -> None:
    weight = torch.randn(5, 100, generator=torch.Generator().manual_seed(0))
    rounded = round_weight(weight, bits)
    levels = 2 ** (bits - 1) - 1
    for part, of in zip(rounded.split(group, 1), weight.split(group, 1), strict=True):
        scale = of.abs().amax(1, keepdim=True) / levels
        steps = part / scale
        torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-4)
        assert steps.abs().max() <= levels + 1e-4
        assert ((part - of).abs() <= scale / 2 + 1e-6).all()
    assert len(rounded[0].unique()) <= 2 * levels + 1 if bits == 8 else True


def test_fewer_bits_round_more() -> None:
    weight = torch.randn(8, 256, generator=torch.Generator().manual_seed(0))
    errors = [float((round_weight(weight, bits) - weight).norm()) for bits in (8, 4)]
    assert 5 < errors[1] / errors[0] < 25


def test_a_weight_of_zeros_stays() -> None:
    assert (round_weight(torch.zeros(3, 7), 4) == 0).all()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_a_model_is_rounded_for_a_while(kind: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(f"tiny_{kind}")
    task = "classification" if kind == "bert" else "causal-lm"
    model = load_base_model(ModelConfig(name=str(folder), task=task, device="cpu"))  # type: ignore[arg-type]
    before = {name: p.clone() for name, p in model.named_parameters()}
    with rounded_weights(model, 4):
        changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
        assert changed
        assert not any("embed" in n or "wte" in n or "norm" in n.lower() for n in changed)
        for name in changed:
            distance = float((model.get_parameter(name) - before[name]).norm())
            assert 0.02 < distance / float(before[name].norm()) < 0.2
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_a_model_without_linear_modules_is_refused() -> None:
    with pytest.raises(ModelError, match="no linear module"), rounded_weights(nn.ReLU(), 4):
        pass
