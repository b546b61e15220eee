"""The clients' part of a round: local steps on their own rows, from the adapter they were sent.

A remote client trains alone; a simulation trains a cohort in shared forward and backward passes. It
is one code path: a client alone is a cohort of one. Legend: K clients; N rows; `...` a shape.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedpeft.devices import to_device
from fedpeft.dp.grad_sample import owned_by_rows, per_example_grads, trainable_parameters
from fedpeft.dp.mechanism import CohortBatch, DpSgd, NoisyGradient, cohort_step
from fedpeft.dp.randomness import Keystream
from fedpeft.dp.sampling import poisson_sample
from fedpeft.errors import PrivacyError
from fedpeft.federated.adapted_model import AdaptedModel
from fedpeft.federated.config import FederationConfig
from fedpeft.federated.plan import ClientPlan
from fedpeft.models.dataset import Dataset, collate, concat_datasets, physical_batches
from fedpeft.models.tasks import HEAD


@dataclass(frozen=True, kw_only=True)
class LocalClient:
    """One client of a cohort: its rows, its plan, and the source of its coins."""

    plan: ClientPlan
    dataset: Dataset
    keystream: Keystream


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
    clients: Sequence[LocalClient],
    federation: FederationConfig,
    *,
    max_tokens: int,
    step_finished: Callable[[int], None] = lambda step: None,
) -> list[LocalResult]:
    """Runs the local steps of every client on the adapter that `model` holds.

    Each client has its own copy of the trained tensors and a new optimizer; the model itself is not
    changed. With a private plan each step is one of `dp.mechanism`; without, plain SGD on Poisson
    batches with the same fixed divisor. Reserve the events before calling this.

    Raises:
        PrivacyError: If some of the clients are private and some are not.
    """
    trained = trainable_parameters(model.task_model)
    stacked = {
        name: torch.nn.Parameter(p.detach().expand(len(clients), *p.shape).clone())
        for name, p in trained.items()
    }
    optimizer = _optimizer(stacked, federation)
    gradients = _gradients(model, clients, stacked, max_tokens)
    num_nonfinite = [0] * len(clients)
    for step in range(1, federation.local_steps + 1):
        released = gradients()
        for name, parameter in stacked.items():
            parameter.grad = torch.stack([gradient.mean[name] for gradient in released])
        optimizer.step()
        num_nonfinite = [n + r.num_nonfinite for n, r in zip(num_nonfinite, released, strict=True)]
        step_finished(step)
    return [
        LocalResult(
            tensors={name: p.detach()[k].cpu().clone() for name, p in stacked.items()},
            num_nonfinite=num_nonfinite[k],
        )
        for k in range(len(clients))
    ]


def _gradients(
    model: AdaptedModel,
    clients: Sequence[LocalClient],
    stacked: dict[str, torch.nn.Parameter],
    max_tokens: int,
) -> Callable[[], list[NoisyGradient]]:
    """Returns what computes the gradient of every client's next step."""
    rows_of_all = concat_datasets([client.dataset for client in clients])
    offsets = [0, *accumulate(len(client.dataset) for client in clients)]

    def to_batches(samples: Sequence[NDArray[np.int64]]) -> Iterator[CohortBatch]:
        drawn = np.concatenate(
            [rows + start for rows, start in zip(samples, offsets, strict=False)]
        )
        for rows in physical_batches(rows_of_all, drawn.tolist(), max_tokens, model.device):
            batch = collate(rows_of_all, rows, model.device)
            owners = np.searchsorted(offsets, rows, side="right") - 1
            yield CohortBatch(
                rows=np.asarray(rows) - np.asarray(offsets)[owners],
                owners=owners,
                losses=partial(model.task_model.losses, batch),
            )

    private = [client.plan.dp for client in clients if client.plan.dp is not None]
    if private and len(private) < len(clients):
        raise PrivacyError("private clients and others cannot train in one cohort")
    if private:
        mechanisms = [
            DpSgd(model.task_model, dp, client.keystream)
            for dp, client in zip(private, clients, strict=True)
        ]
        return lambda: cohort_step(mechanisms, to_batches, stacked)
    return lambda: _plain_step(model, clients, to_batches, stacked)


def _plain_step(
    model: AdaptedModel,
    clients: Sequence[LocalClient],
    to_batches: Callable[[Sequence[NDArray[np.int64]]], Iterator[CohortBatch]],
    stacked: dict[str, torch.nn.Parameter],
) -> list[NoisyGradient]:
    """The step of `dp.mechanism.cohort_step` without clipping and noise: no guarantee at all."""
    samples = [
        poisson_sample(client.plan.num_examples, client.plan.sampling_prob, client.keystream)
        for client in clients
    ]
    total = {name: torch.zeros_like(parameter) for name, parameter in stacked.items()}
    for batch in to_batches(samples):
        owner_N = to_device(torch.from_numpy(batch.owners), model.device)
        given = owned_by_rows(stacked, owner_N)
        grads = per_example_grads(model.task_model, len(batch.rows), batch.losses, given)
        for name, grad in grads.items():
            total[name].index_add_(0, owner_N, grad)
    return [
        NoisyGradient(
            mean={name: grad[k] / client.plan.expected_batch_size for name, grad in total.items()},
            num_examples=len(samples[k]),
            num_nonfinite=0,
        )
        for k, client in enumerate(clients)
    ]


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
