"""Our two arms of `fedpeft bench dp-step`: a step of plain SGD, and the same step in private.

Both train the same LoRA modules on the same batch, and neither has to collate or move it.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from fedpeft.bench.cases import trained_tensors
from fedpeft.dp.mechanism import DpSgd, DpSgdConfig, NoisyGradient
from fedpeft.dp.randomness import Keystream
from fedpeft.federated.adapted_model import AdaptedModel
from fedpeft.models.dataset import Batch

NON_PRIVATE, FEDPEFT = "non-private", "fedpeft"
# So small that the work of the last block is that of the first.
LEARNING_RATE = 1e-6
NOISE_MULTIPLIER = 1.0


def non_private_step(model: AdaptedModel, batch: Batch) -> Callable[[], None]:
    """Returns forward, backward of the mean loss, and a step of SGD."""
    optimizer = sgd(trained_tensors(model).values())

    def step() -> None:
        model.task_model.losses(batch).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def private_step(model: AdaptedModel, batch: Batch, l2_clip_norm: float) -> Callable[[], None]:
    """Returns forward, per-example gradients, clipping, summing, noise, and a step of SGD."""
    parameters = trained_tensors(model)
    optimizer = sgd(parameters.values())
    release = noisy_gradient(model, batch, l2_clip_norm)

    def step() -> None:
        released = release()
        for name, parameter in parameters.items():
            parameter.grad = released.mean[name]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def noisy_gradient(
    model: AdaptedModel, batch: Batch, l2_clip_norm: float
) -> Callable[[], NoisyGradient]:
    """Returns what the private step releases; each row is in the sample, with probability 1."""
    config = DpSgdConfig(
        num_examples=batch.num_rows,
        expected_batch_size=batch.num_rows,
        l2_clip_norm=l2_clip_norm,
        noise_multiplier=NOISE_MULTIPLIER,
    )
    mechanism = DpSgd(model.task_model, config, Keystream.from_system())
    return lambda: mechanism.step(lambda rows: [(rows, lambda: model.task_model.losses(batch))])


def sgd(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    """Returns the optimizer that every arm ends its step with."""
    return torch.optim.SGD(list(parameters), lr=LEARNING_RATE)
