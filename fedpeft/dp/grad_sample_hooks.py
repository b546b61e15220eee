"""Per-example gradients of ordinary modules, by the hooks of Opacus.

Opacus keeps what a module was given in the forward pass and, when backward arrives at the module's
output, computes each row's gradient from the two, by a rule of its own for nn.Linear, nn.LayerNorm,
nn.Embedding, nn.Conv1d and some more, or by running the module again for each row (functorch).
(Yousefpour et al., 2021, "Opacus: User-Friendly Differential Privacy Library in PyTorch".)

What it would get wrong is refused: modules that are called twice, or on something other than one
tensor whose first axis is the rows, and settings that its rules ignore. A first axis that happens
to be as long as the rows, but is another one, cannot be told from them.

Legend: N rows; `...` the parameter's own shape.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fedpeft.errors import PrivacyError

if TYPE_CHECKING:
    from opacus import GradSampleModule

# What Opacus leaves on a module when the backward pass did not reach it.
_LEFTOVERS = ("activations", "max_batch_len", "ft_compute_sample_grad")


@contextmanager
def hooked_parameters(
    modules: Mapping[str, nn.Module], num_rows: int, given: Mapping[str, Tensor]
) -> Iterator[dict[str, nn.Parameter]]:
    """Has the gradient of each row computed for the trainable parameters of ordinary modules.

    While the context is open the modules hold parameters of its own, so that nothing is left on
    theirs. Run backward once, from the *sum* of the losses, and read the gradients with
    `hooked_grads`, before the context closes.

    Args:
        modules: Full name → module with trainable parameters of its own.
        num_rows: Number N of rows.
        given: Full parameter name → value, shape (1, ...), of at least these modules' parameters.

    Yields:
        Full parameter name → the parameter in use, shape (...).

    Raises:
        PrivacyError: If Opacus is not installed or cannot do a module, or if the rows have values
            of their own.
    """
    if not modules:
        yield {}
        return
    for name, module in modules.items():
        _check(name, module)
    before = {name: _trainable(module) for name, module in modules.items()}
    together = nn.ModuleList(modules.values())
    leaves: dict[str, nn.Parameter] = {}
    try:
        for prefix, own in before.items():
            for name in own:
                full = _join(prefix, name)
                leaf = nn.Parameter(_shared(full, given[full], num_rows))
                leaves[full] = leaf
                setattr(modules[prefix], name, leaf)
        hooks = _hooks(together, num_rows)
        try:
            with warnings.catch_warnings():
                # The hook of a first layer has no gradient of its input, and does not need one.
                warnings.filterwarnings("ignore", "Full backward hook is firing")
                yield leaves
        finally:
            hooks.cleanup()
    finally:
        for handle in getattr(together, "autograd_grad_sample_hooks", ()):  # half-made hooks
            handle.remove()
        for prefix, own in before.items():
            for name, parameter in own.items():
                setattr(modules[prefix], name, parameter)
            for name in _LEFTOVERS:
                vars(modules[prefix]).pop(name, None)


def hooked_grads(modules: Mapping[str, nn.Module], num_rows: int) -> dict[str, Tensor]:
    """Returns what one backward pass found, while the context of `hooked_parameters` is open.

    Returns:
        Full parameter name → gradients, shape (N, ...), zero where no row used the parameter.
    """
    grads = {}
    for prefix, module in modules.items():
        for name, leaf in _trainable(module).items():
            full = _join(prefix, name)
            grad = vars(leaf)["grad_sample"]
            grad = leaf.new_zeros(num_rows, *leaf.shape) if grad is None else grad.detach()
            if grad.shape != (num_rows, *leaf.shape):
                raise PrivacyError(
                    f"Opacus found gradients of shape {tuple(grad.shape)} for {full}, expected "
                    f"{(num_rows, *leaf.shape)}; freeze it"
                )
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                grad[:, module.padding_idx] = 0  # as in autograd; Opacus does not
            grads[full] = grad.to(leaf.dtype)
    return grads


def _shared(name: str, value: Tensor, num_rows: int) -> Tensor:
    if value.shape[0] != 1:
        raise PrivacyError(
            f"{name} belongs to a module that takes one value for all rows, but these {num_rows} "
            "rows belong to several clients; train one client at a time: "
            "federation.clients_at_once = 1"
        )
    return value[0].detach()


def _hooks(modules: nn.ModuleList, num_rows: int) -> "GradSampleModule":
    try:
        from opacus import GradSampleModule
    except ImportError as error:
        kinds = sorted({type(module).__name__ for module in modules})
        raise PrivacyError(
            f"per-example gradients of {', '.join(kinds)} need Opacus; run: pip install opacus, or "
            "freeze these modules"
        ) from error

    class Hooks(GradSampleModule):  # type: ignore[misc]  # Opacus has no types
        """Refuses in the forward pass what would come out wrong in the backward pass."""

        def capture_activations_hook(
            self, module: nn.Module, forward_input: Any, forward_output: Any
        ) -> None:
            if not torch.is_grad_enabled():
                return
            rows = [*forward_input, forward_output]
            if len(rows) != 2 or any(
                not isinstance(x, Tensor) or x.ndim == 0 or x.shape[0] != num_rows for x in rows
            ):
                shapes = [tuple(x.shape) if isinstance(x, Tensor) else type(x) for x in rows]
                raise PrivacyError(
                    f"a trained {type(module).__name__} must map one tensor of {num_rows} rows to "
                    f"another, got {shapes}: what rows share, such as position embeddings, has no "
                    "per-example gradient; freeze it"
                )
            if hasattr(module, "activations"):
                raise PrivacyError(
                    f"a trained {type(module).__name__} is called twice in a forward pass, or once "
                    "more by gradient checkpointing; freeze it or set gradient_checkpointing = "
                    "false"
                )
            # Opacus looks on in training mode only; nothing else of the module runs here.
            was, module.training = module.training, True
            super().capture_activations_hook(module, forward_input, forward_output)
            module.training = was

    hooks: GradSampleModule = Hooks(modules, loss_reduction="sum")
    return hooks


def _check(name: str, module: nn.Module) -> None:
    """Refuses a module for which Opacus has no right gradient."""
    problem = None
    if any(True for _ in module.buffers()):
        problem = "it has buffers, which may carry one row's values to another"
    elif any(True for _ in module.children()):
        problem = "its own parameters and its submodules cannot be told apart"
    elif isinstance(module, nn.LayerNorm) and module.bias is None:
        problem = "Opacus expects a bias"
    elif isinstance(module, nn.Embedding) and (module.max_norm or module.scale_grad_by_freq):
        problem = "max_norm and scale_grad_by_freq mix the rows of a batch"
    elif getattr(module, "padding_mode", "zeros") != "zeros":
        problem = "Opacus pads with zeros"
    if problem is not None:
        raise PrivacyError(
            f"{name} ({type(module).__name__}) has trainable parameters but no per-example "
            f"gradients: {problem}; freeze it"
        )


def _trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    return {n: p for n, p in module.named_parameters(recurse=False) if p.requires_grad}


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
