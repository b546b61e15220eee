"""Diagonal Fisher information of base weights on a set of rows. Legend: I inputs, O outputs."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from fedpeft.errors import DataError
from fedpeft.models.dataset import Dataset, collate, physical_batches
from fedpeft.models.tasks import TaskModel


def fisher_information(
    model: TaskModel,
    weights: Mapping[str, nn.Parameter],
    dataset: Dataset,
    *,
    batch_size: int,
    max_tokens: int,
    advanced: Callable[[int], None] = lambda num_rows: None,
) -> dict[str, Tensor]:
    """Returns the mean over rows of the squared gradient of each weight, float32 on its device.

    As LoKU has it, the gradient is that of a batch's mean loss, counted once for each of its rows.
    The smaller the batches, the nearer to the Fisher information, and the slower.

    Args:
        model: In evaluation mode.
        weights: Those to look at; only they get gradients meanwhile.
        dataset: The rows, in their order.
        batch_size: Rows whose loss is averaged, at most.
        max_tokens: Bound on the padded tokens of a batch.
        advanced: Called with the number of rows after each batch.

    Raises:
        DataError: If there are no rows.
    """
    if not len(dataset):
        raise DataError("there are no rows to compute an importance on")
    assert isinstance(model, nn.Module)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    device = next(model.parameters()).device
    totals = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    try:
        model.requires_grad_(False)
        for weight in weights.values():
            weight.requires_grad_(True)
        for rows in physical_batches(dataset, range(len(dataset)), max_tokens, device):
            for start in range(0, len(rows), batch_size):
                some = rows[start : start + batch_size]
                loss = model.losses(collate(dataset, some, device)).mean()
                gradients = torch.autograd.grad(loss, list(weights.values()))
                for total, gradient in zip(totals.values(), gradients, strict=True):
                    total.addcmul_(gradient, gradient, value=len(some))
                advanced(len(some))
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before[name])
    return {name: total / len(dataset) for name, total in totals.items()}
