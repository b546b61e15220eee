"""A model with its weights rounded to few bits, as it may be served.

Unlearning moves weights by little. Rounding may move them back, and the text with them, which a
score in bfloat16 does not show (Zhang et al., "Catastrophic Failure of LLM Unlearning via
Quantization", 2024).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from fedpeft.adapters.linear import LinearLike, is_linear, weight_of
from fedpeft.errors import ModelError

Bits = Literal[4, 8]
_GROUP = {8: 0, 4: 64}
"""Inputs that share a scale; 0: all of an output's."""


@contextmanager
def rounded_weights(model: nn.Module, bits: Bits) -> Iterator[None]:
    """Rounds the weight of every linear module to the nearest of 2^bits - 1 levels, for a while.

    Symmetric, without calibration data: one scale an output at 8 bits, one for 64 inputs of an
    output at 4 bits. An adapter must be merged before; embeddings, and the output weight that is
    one, stay as they are.

    Raises:
        ModelError: If the model has no linear module.
    """
    tied = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    modules: dict[str, LinearLike] = {
        name: module
        for name, module in model.named_modules()
        if is_linear(module) and id(module.weight) not in tied
    }
    if not modules:
        raise ModelError("the model has no linear module whose weight could be rounded")
    before = {name: module.weight.detach().clone() for name, module in modules.items()}
    try:
        with torch.no_grad():
            for module in modules.values():
                weight_OI = weight_of(module)
                weight_OI.copy_(round_weight(weight_OI, bits))
        yield
    finally:
        with torch.no_grad():
            for name, module in modules.items():
                module.weight.copy_(before[name])


def round_weight(weight_OI: Tensor, bits: Bits) -> Tensor:
    """Returns a weight of shape (O, I) rounded; the largest of a group stays what it is."""
    num_outputs, num_inputs = weight_OI.shape
    group = _GROUP[bits] or num_inputs
    padded = nn.functional.pad(weight_OI.float(), (0, -num_inputs % group))
    grouped = padded.reshape(num_outputs, -1, group)
    levels = 2 ** (bits - 1) - 1
    scale = grouped.abs().amax(2, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / levels
    rounded: Tensor = ((grouped / scale).round() * scale).reshape(num_outputs, -1)
    return rounded[:, :num_inputs].to(weight_OI.dtype)
