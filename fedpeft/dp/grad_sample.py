"""Per-example gradients without hooks and without a second backward pass.

A module that can be trained privately accepts its trainable parameters *per row* of the batch.
Before the forward pass each parameter is expanded to one copy a row (a view, no memory); backward
then writes the gradient of each row's loss into that row's copy, by the same batched matmul that
would otherwise have summed over the batch. Legend: N rows; `...` the parameter's own shape.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from fedpeft.errors import PrivacyError


@runtime_checkable
class RowParameterized(Protocol):
    """A module whose own trainable parameters may be given per row.

    Its forward reads `row_parameters[name]`, shape (N, ...), in place of `self.name`, shape (...),
    whenever `row_parameters` is not None; row n of the output may depend on copy n only.
    """

    row_parameters: dict[str, Tensor] | None


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Returns the model's trainable parameters by name, in the model's own order."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@contextmanager
def row_parameters(model: nn.Module, num_rows: int) -> Iterator[dict[str, Tensor]]:
    """Expands every trainable parameter to one leaf copy a row while the context is open.

    Yields:
        Full parameter name → leaf of shape (num_rows, ...), in the model's own order.

    Raises:
        PrivacyError: If a trainable parameter belongs to a module that cannot take it per row, or
            if a module mixes the rows of a batch.
    """
    opened: list[RowParameterized] = []
    leaves: dict[str, Tensor] = {}
    try:
        for prefix, module in model.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                raise PrivacyError(
                    f"{prefix} is a batch norm: it mixes examples, so that no per-example gradient "
                    "exists; use a model without batch normalisation"
                )
            own = {n: p for n, p in module.named_parameters(recurse=False) if p.requires_grad}
            if not own:
                continue
            if not isinstance(module, RowParameterized):
                raise PrivacyError(
                    f"{prefix} ({type(module).__name__}) has trainable parameters "
                    f"{sorted(own)} but no per-example gradients; freeze it or adapt it"
                )
            rows = {n: p.detach().expand(num_rows, *p.shape) for n, p in own.items()}
            module.row_parameters = {n: r.requires_grad_() for n, r in rows.items()}
            opened.append(module)
            dot = f"{prefix}." if prefix else ""
            leaves |= {f"{dot}{n}": r for n, r in module.row_parameters.items()}
        yield leaves
    finally:
        for opened_module in opened:
            opened_module.row_parameters = None


def per_example_grads(
    model: nn.Module, num_rows: int, losses: Callable[[], Tensor]
) -> dict[str, Tensor]:
    """Returns the gradient of each row's loss with respect to every trainable parameter.

    Args:
        model: A model all of whose trainable parameters are `RowParameterized`.
        num_rows: Number N of rows that `losses` computes.
        losses: Runs the forward pass and returns the loss of each row, shape (N,).

    Returns:
        Full parameter name → gradients, shape (N, ...). Non-finite values are passed on: clipping
        decides what they count for.
    """
    with row_parameters(model, num_rows) as leaves:
        losses_N = losses()
        if losses_N.shape != (num_rows,):
            raise PrivacyError(
                f"expected one loss a row, shape ({num_rows},), got {tuple(losses_N.shape)}"
            )
        grads = torch.autograd.grad(losses_N.sum(), list(leaves.values()), allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if grad is None else grad
        for (name, leaf), grad in zip(leaves.items(), grads, strict=True)
    }
