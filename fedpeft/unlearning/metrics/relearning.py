"""How fast rows that were forgotten are learned again.

A model that only hides rows has them back after a few steps; one that never saw them needs as many
as for any other rows of their kind.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from fedpeft.errors import DataError
from fedpeft.federated.adapted_model import AdaptedModel
from fedpeft.models.dataset import Dataset, collate, physical_batches


def relearning_curve(
    model: AdaptedModel,
    dataset: Dataset,
    *,
    num_steps: int,
    learning_rate: float,
    batch_size: int,
    max_tokens: int,
    seed: int,
    target: float = -math.inf,
) -> list[float]:
    """Trains the adapter and the head of `model` on the rows, with AdamW, and looks at each step.

    Args:
        model: Is changed.
        dataset: The rows.
        num_steps: At most.
        learning_rate: Of AdamW.
        batch_size: Rows a step.
        max_tokens: Bound on the padded tokens of a batch.
        seed: Draws the order of rows.
        target: It stops where the mean loss is no more than that.

    Returns:
        The mean loss of all rows before the first step and after each.

    Raises:
        DataError: If there are no rows.
    """
    if not len(dataset):
        raise DataError("there are no rows to be learned again")
    names = set(model.set_trainable(("lora_a", "lora_b")))
    trained = [p for n, p in model.task_model.named_parameters() if n in names]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate)
    order = _endless(len(dataset), batch_size, np.random.default_rng(seed))
    losses = [_mean_loss(model, dataset, max_tokens)]
    for _ in range(num_steps):
        if losses[-1] <= target:
            break
        rows = next(order)
        optimizer.zero_grad()
        for some in physical_batches(dataset, rows, max_tokens, model.device):
            loss = model.task_model.losses(collate(dataset, some, model.device)).sum() / len(rows)
            loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(_mean_loss(model, dataset, max_tokens))
    return losses


def steps_until(losses: Sequence[float], target: float) -> int | None:
    """Returns the first step after which the loss is at most `target`; None where it never was."""
    return next((step for step, loss in enumerate(losses) if loss <= target), None)


def _mean_loss(model: AdaptedModel, dataset: Dataset, max_tokens: int) -> float:
    total = 0.0
    with torch.inference_mode():
        for rows in physical_batches(dataset, range(len(dataset)), max_tokens, model.device):
            total += float(model.task_model.losses(collate(dataset, rows, model.device)).sum())
    return total / len(dataset)


def _endless(num_rows: int, batch_size: int, random: np.random.Generator) -> Iterator[list[int]]:
    while True:
        order = random.permutation(num_rows).tolist()
        for start in range(0, num_rows, batch_size):
            yield order[start : start + batch_size]
