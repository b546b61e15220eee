"""Per-example gradients without hooks and without a second backward pass.

A module that can be trained privately accepts its trainable parameters *per row* of the batch.
Before the forward pass each parameter is given to the rows, one copy each (a view, no memory, where
all rows share it); backward then writes the gradient of each row's loss into that row's copy, by
the same batched matmul that would otherwise have summed over the batch. Rows of several clients,
each with its client's own parameters, can so share one forward and one backward pass.

Legend: N rows; K clients; `...` the parameter's own shape.
"""

from collections.abc import Callable, Iterator, Mapping
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


def owned_by_rows(stacked: Mapping[str, Tensor], owner_N: Tensor) -> dict[str, Tensor]:
    """Gives every row the parameters of the client that owns it.

    Args:
        stacked: Parameter name → one copy a client, shape (K, ...).
        owner_N: Index of each row's client, int64.
    """
    num_rows = owner_N.shape[0]
    return {
        name: one.detach().expand(num_rows, *one.shape[1:])
        if one.shape[0] == 1
        else one.detach().index_select(0, owner_N)
        for name, one in stacked.items()
    }


@contextmanager
def row_parameters(
    model: nn.Module, num_rows: int, given: Mapping[str, Tensor] | None = None
) -> Iterator[dict[str, Tensor]]:
    """Gives every row its own trainable parameters while the context is open.

    Args:
        model: A model all of whose trainable parameters are `RowParameterized`.
        num_rows: Number N of rows.
        given: Full parameter name → one copy a row, shape (N, ...), for every trainable parameter.
            Default: the model's own for every row.

    Yields:
        Full parameter name → leaf of shape (N, ...), in the model's own order.

    Raises:
        PrivacyError: If a trainable parameter belongs to a module that cannot take it per row, if a
            module mixes the rows of a batch, or if a parameter was not given in its shape.
    """
    own_rows = {
        name: p.detach().expand(num_rows, *p.shape)
        for name, p in trainable_parameters(model).items()
    }
    given = own_rows if given is None else given
    if {n: r.shape for n, r in given.items()} != {n: r.shape for n, r in own_rows.items()}:
        raise PrivacyError(
            f"expected one copy a row of {sorted(own_rows)} for {num_rows} rows, got "
            f"{ {name: tuple(rows.shape) for name, rows in given.items()} }"
        )
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
            dot = f"{prefix}." if prefix else ""
            rows = {name: given[f"{dot}{name}"].detach().requires_grad_() for name in own}
            module.row_parameters = rows
            opened.append(module)
            leaves |= {f"{dot}{name}": row for name, row in rows.items()}
        yield leaves
    finally:
        for opened_module in opened:
            opened_module.row_parameters = None


def per_example_grads(
    model: nn.Module,
    num_rows: int,
    losses: Callable[[], Tensor],
    given: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Returns the gradient of each row's loss with respect to every trainable parameter.

    Args:
        model: A model all of whose trainable parameters are `RowParameterized`.
        num_rows: Number N of rows that `losses` computes.
        losses: Runs the forward pass and returns the loss of each row, shape (N,).
        given: See `row_parameters`.

    Returns:
        Full parameter name → gradients, shape (N, ...). Non-finite values are passed on: clipping
        decides what they count for.
    """
    with row_parameters(model, num_rows, given) as leaves:
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
