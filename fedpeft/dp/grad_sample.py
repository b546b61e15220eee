"""Per-example gradients from one forward and one backward pass.

A module that can be trained privately accepts its trainable parameters *per row* of the batch.
Before the forward pass each parameter is given to the rows, one copy each (a view, no memory, where
all rows share it); backward then writes the gradient of each row's loss into that row's copy, by
the same batched matmul that would otherwise have summed over the batch. Rows of several clients,
each with its client's own parameters, can so share one forward and one backward pass.

Trainable parameters of any other module (a layer norm, an embedding, a plain linear layer) get
their per-example gradients from hooks, in the same backward pass: see `grad_sample_hooks`.

Legend: N rows; K clients; `...` the parameter's own shape.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from fedpeft.dp.grad_sample_hooks import hooked_grads, hooked_parameters
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

    Returns:
        Parameter name → one copy a row, shape (N, ...), or where there is one client (1, ...).
    """
    return {
        name: one.detach() if one.shape[0] == 1 else one.detach().index_select(0, owner_N)
        for name, one in stacked.items()
    }


@contextmanager
def row_parameters(
    model: nn.Module, num_rows: int, given: Mapping[str, Tensor] | None = None
) -> Iterator[dict[str, Tensor]]:
    """Gives every row its own copy of what `RowParameterized` modules train, while it is open.

    Args:
        model: A model.
        num_rows: Number N of rows.
        given: Full parameter name → one copy a row, shape (N, ...), or one for all, shape (1, ...),
            for every trainable parameter. Default: the model's own for every row.

    Yields:
        Full parameter name → leaf of shape (N, ...), in the model's own order.

    Raises:
        PrivacyError: If a module mixes the rows of a batch, or if a parameter was not given in its
            shape, or belongs to two modules.
    """
    given = _values(model, num_rows, given)
    by_row, _ = _owners(model)
    leaves: dict[str, Tensor] = {}
    try:
        for prefix, module in by_row.items():
            rows = {
                name: given[_join(prefix, name)]
                .detach()
                .expand(num_rows, *parameter.shape)
                .requires_grad_()
                for name, parameter in module.named_parameters(recurse=False)
                if parameter.requires_grad
            }
            assert isinstance(module, RowParameterized)
            module.row_parameters = rows
            leaves |= {_join(prefix, name): row for name, row in rows.items()}
        yield leaves
    finally:
        for module in by_row.values():
            assert isinstance(module, RowParameterized)
            module.row_parameters = None


def per_example_grads(
    model: nn.Module,
    num_rows: int,
    losses: Callable[[], Tensor],
    given: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Returns the gradient of each row's loss with respect to every trainable parameter.

    Args:
        model: The model. Modules that are not `RowParameterized` may be trained where Opacus can do
            them, with one value of their parameters for all rows.
        num_rows: Number N of rows that `losses` computes.
        losses: Runs the forward pass and returns the loss of each row, shape (N,).
        given: See `row_parameters`.

    Returns:
        Full parameter name → gradients, shape (N, ...), in the model's own order. Non-finite values
        are passed on: clipping decides what they count for.

    Raises:
        PrivacyError: See `row_parameters` and `grad_sample_hooks.hooked_parameters`; or if there is
            not one loss a row.
    """
    values = _values(model, num_rows, given)
    _, by_hook = _owners(model)
    with (
        row_parameters(model, num_rows, given) as leaves,
        hooked_parameters(by_hook, num_rows, values) as hooked,
    ):
        losses_N = losses()
        if losses_N.shape != (num_rows,):
            raise PrivacyError(
                f"expected one loss a row, shape ({num_rows},), got {tuple(losses_N.shape)}"
            )
        # The hooked parameters are asked for as well, or backward might not come by their modules.
        inputs = [*leaves.values(), *hooked.values()]
        grads = torch.autograd.grad(losses_N.sum(), inputs, allow_unused=True)
        found = hooked_grads(by_hook, num_rows)
    for (name, leaf), grad in zip(leaves.items(), grads[: len(leaves)], strict=True):
        found[name] = torch.zeros_like(leaf) if grad is None else grad
    return {name: found[name] for name in trainable_parameters(model)}


def _values(
    model: nn.Module, num_rows: int, given: Mapping[str, Tensor] | None
) -> Mapping[str, Tensor]:
    """The value of each trainable parameter, one a row or one for all."""
    own = {name: p.detach().unsqueeze(0) for name, p in trainable_parameters(model).items()}
    if given is None:
        return own
    if given.keys() != own.keys() or any(
        rows.shape not in {one.shape, (num_rows, *one.shape[1:])}
        for rows, one in zip((given[name] for name in own), own.values(), strict=True)
    ):
        raise PrivacyError(
            f"expected one copy a row of {sorted(own)} for {num_rows} rows, got "
            f"{ {name: tuple(rows.shape) for name, rows in given.items()} }"
        )
    return given


def _owners(model: nn.Module) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """The modules with trainable parameters of their own: those that take rows, and the others."""
    by_row: dict[str, nn.Module] = {}
    by_hook: dict[str, nn.Module] = {}
    seen: dict[int, str] = {}
    for prefix, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise PrivacyError(
                f"{prefix} is a batch norm: it mixes examples, so that no per-example gradient "
                "exists; use a model without batch normalisation"
            )
        own = {n: p for n, p in module._parameters.items() if p is not None and p.requires_grad}
        for name, parameter in own.items():
            if id(parameter) in seen:
                raise PrivacyError(
                    f"{_join(prefix, name)} is the same parameter as {seen[id(parameter)]}: tied "
                    "parameters have no per-example gradients here; freeze them"
                )
            seen[id(parameter)] = _join(prefix, name)
        if own:
            (by_row if isinstance(module, RowParameterized) else by_hook)[prefix] = module
    if by_hook and any(m._compiled_call_impl is not None for m in model.modules()):
        raise PrivacyError(
            f"{next(iter(by_hook))} is trained by hooks, which a compiled model does not call; set "
            "compile = false or freeze it"
        )
    return by_row, by_hook


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
