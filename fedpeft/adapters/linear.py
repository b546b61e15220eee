"""The two kinds of linear module that transformers models are built from, seen as one.

`nn.Linear` stores its weight as (d_out, d_in), GPT-2's `Conv1D` as (d_in, d_out).
"""

from typing import TypeAlias

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

LinearLike: TypeAlias = "nn.Linear | Conv1D"


def is_linear(module: nn.Module) -> bool:
    """Returns whether the module is one that an adapter can wrap.

    A subclass is not: its weight may be read past its forward (nn.MultiheadAttention's out_proj),
    or it is the task's own head.
    """
    return type(module) in (nn.Linear, Conv1D)


def linear_module(model: nn.Module, name: str) -> LinearLike:
    """Returns the module of that name, one that `is_linear`."""
    module: LinearLike = model.get_submodule(name)
    return module


def is_transposed(module: nn.Module) -> bool:
    """Returns whether the module stores its weight as (d_in, d_out)."""
    return isinstance(module, Conv1D)


def weight_of(module: LinearLike) -> Tensor:
    """Returns the weight as (d_out, d_in), a view."""
    weight: Tensor = module.weight.detach()
    return weight.T if is_transposed(module) else weight
