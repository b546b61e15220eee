"""Scoring of a task model on a held-out set."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

from fedpeft.models.dataset import Dataset, collate, physical_batches
from fedpeft.models.tasks import Score, TaskModel, metrics


def evaluate(
    model: TaskModel,
    dataset: Dataset,
    *,
    task: Literal["classification", "causal-lm"],
    max_tokens: int,
    advanced: Callable[[int], None] = lambda num_rows: None,
) -> dict[str, float]:
    """Returns the metrics of `tasks.metrics` over the whole data set.

    Args:
        model: The model, on whichever device.
        dataset: Held-out rows.
        task: What the metrics are.
        max_tokens: Bound on the padded tokens of one physical batch.
        advanced: Called with the number of rows after each physical batch.
    """
    assert isinstance(model, nn.Module)
    device = next(model.parameters()).device
    total = Score()
    with torch.inference_mode():
        for rows in physical_batches(dataset, range(len(dataset)), max_tokens, device):
            total = total + model.score(collate(dataset, rows, device))
            advanced(len(rows))
    return metrics(total, task)
