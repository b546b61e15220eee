"""One client's part of a round: local steps on its own rows, from the adapter it was sent."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedpeft.dp.grad_sample import trainable_parameters
from fedpeft.dp.mechanism import DpSgd, NoisyGradient, PhysicalBatch
from fedpeft.dp.randomness import Keystream
from fedpeft.dp.sampling import poisson_sample
from fedpeft.federated.adapted_model import AdaptedModel
from fedpeft.federated.config import FederationConfig
from fedpeft.federated.plan import ClientPlan
from fedpeft.models.dataset import Batch, Dataset, collate, physical_batches
from fedpeft.models.tasks import HEAD


@dataclass(frozen=True, kw_only=True)
class LocalResult:
    """What a client has after its local steps.

    Attributes:
        tensors: The trained tensors by name, on the CPU. This is what goes up.
        num_nonfinite: Examples that counted as zero. Stays with the client.
    """

    tensors: dict[str, Tensor]
    num_nonfinite: int


def train_locally(
    model: AdaptedModel,
    dataset: Dataset,
    client: ClientPlan,
    federation: FederationConfig,
    keystream: Keystream,
    *,
    max_tokens: int,
    step_finished: Callable[[int], None] = lambda step: None,
) -> LocalResult:
    """Runs the client's local steps on the adapter that `model` holds; the optimizer starts anew.

    With `client.dp` each step is one of `dp.mechanism.DpSgd`; without it, plain SGD on Poisson
    batches with the same fixed divisor. Reserve the event before calling this.
    """
    parameters = trainable_parameters(model.task_model)
    optimizer = _optimizer(parameters, federation)
    gradient = _gradient(model, dataset, client, keystream, max_tokens)
    num_nonfinite = 0
    for step in range(1, federation.local_steps + 1):
        released = gradient()
        num_nonfinite += released.num_nonfinite
        for name, parameter in parameters.items():
            parameter.grad = released.mean[name].to(parameter.dtype)
        optimizer.step()
        step_finished(step)
    return LocalResult(
        tensors={name: p.detach().cpu().clone() for name, p in parameters.items()},
        num_nonfinite=num_nonfinite,
    )


def _gradient(
    model: AdaptedModel,
    dataset: Dataset,
    client: ClientPlan,
    keystream: Keystream,
    max_tokens: int,
) -> Callable[[], NoisyGradient]:
    def to_batches(rows: NDArray[np.int64]) -> list[Batch]:
        batches = physical_batches(dataset, rows.tolist(), max_tokens)
        return [collate(dataset, batch, model.device) for batch in batches]

    def to_losses(rows: NDArray[np.int64]) -> list[PhysicalBatch]:
        losses = model.task_model.losses
        return [(batch.num_rows, partial(losses, batch)) for batch in to_batches(rows)]

    if client.dp is not None:
        mechanism = DpSgd(model.task_model, client.dp, keystream)
        return lambda: mechanism.step(to_losses)

    def plain() -> NoisyGradient:
        rows = poisson_sample(client.num_examples, client.sampling_prob, keystream)
        mean = _mean_gradient(model, to_batches(rows), client.expected_batch_size)
        return NoisyGradient(mean=mean, num_examples=len(rows), num_nonfinite=0)

    return plain


def _mean_gradient(
    model: AdaptedModel, batches: Iterable[Batch], divisor: float
) -> dict[str, Tensor]:
    parameters = trainable_parameters(model.task_model)
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for batch in batches:
        loss = model.task_model.losses(batch).sum() / divisor
        grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for name, grad in zip(parameters, grads, strict=True):
            if grad is not None:
                total[name] += grad
    return total


def _optimizer(
    parameters: dict[str, torch.nn.Parameter], federation: FederationConfig
) -> torch.optim.Optimizer:
    head_rate = federation.head_learning_rate or federation.learning_rate
    groups = [
        {
            "params": [p for name, p in parameters.items() if name.startswith(HEAD) is is_head],
            "lr": head_rate if is_head else federation.learning_rate,
        }
        for is_head in (False, True)
    ]
    groups = [group for group in groups if group["params"]]
    if federation.optimizer == "adam":
        return torch.optim.AdamW(groups, weight_decay=federation.weight_decay)
    return torch.optim.SGD(
        groups,
        lr=federation.learning_rate,
        momentum=federation.momentum,
        weight_decay=federation.weight_decay,
    )
