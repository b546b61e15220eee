"""Steps that make a model forget rows and keep others.

Legend: N rows, M terms of an objective.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from fedpeft.errors import DataError, DivergedError
from fedpeft.federated.adapted_model import AdaptedModel
from fedpeft.models.dataset import Dataset, collate, physical_batches
from fedpeft.models.tasks import Precision
from fedpeft.unlearning.config import UnlearningConfig
from fedpeft.unlearning.objectives.answers import Answers, answers_of
from fedpeft.unlearning.objectives.contract import Objective


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one step did.

    Attributes:
        number: From 1.
        num_steps: Of all.
        forget_loss: Mean of the objective's terms of rows to be forgotten, before the step.
        retain_loss: The same of rows that stay; None where the objective does not look at them.
    """

    number: int
    num_steps: int
    forget_loss: float
    retain_loss: float | None


def forget_rows(
    model: AdaptedModel,
    forget: Dataset,
    retain: Dataset,
    objective: Objective,
    config: UnlearningConfig,
    *,
    precision: Precision,
    max_tokens: int,
    seed: int,
    step_finished: Callable[[Step], None] = lambda step: None,
) -> None:
    """Trains the adapter and the trained head of `model` until the rows are forgotten.

    An epoch goes through the rows to be forgotten once, in random order; beside those of a step
    stand as many random rows that stay. AdamW, with a linear warm-up and a linear way down.

    Raises:
        DataError: If there is nothing to forget, or nothing to keep for an objective that keeps.
        DivergedError: If a loss is no finite number.
    """
    if not len(forget):
        raise DataError("there are no rows to be forgotten")
    if objective.keeps and not len(retain):
        raise DataError(f"{objective.name} needs rows that stay, and there are none")
    names = model.set_trainable(("lora_a", "lora_b"))
    trained = {n: p for n, p in model.task_model.named_parameters() if n in set(names)}
    before = {name: parameter.detach().clone() for name, parameter in trained.items()}
    gradients = partial(
        _mean_gradients, model, trained, before, objective.remembers, precision, max_tokens
    )
    plan = list(_plan(len(forget), len(retain), config, seed))
    optimizer = torch.optim.AdamW(
        trained.values(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    rates = _rates(optimizer, config, len(plan))
    for number, (forget_rows_, retain_rows) in enumerate(plan, start=1):
        forgotten = gradients(forget, forget_rows_, objective.forget_terms)
        kept = gradients(retain, retain_rows, objective.retain_terms) if objective.keeps else None
        for name, parameter in trained.items():
            parameter.grad = forgotten.by_name[name]
            if kept is not None:
                parameter.grad += kept.by_name[name]
        optimizer.step()
        rates.step()
        step_finished(
            Step(
                number=number,
                num_steps=len(plan),
                forget_loss=forgotten.loss,
                retain_loss=None if kept is None else kept.loss,
            )
        )


@dataclass(frozen=True, kw_only=True)
class _Mean:
    loss: float
    by_name: dict[str, Tensor]


def _mean_gradients(
    model: AdaptedModel,
    trained: Mapping[str, nn.Parameter],
    before: Mapping[str, Tensor],
    remembers: bool,
    precision: Precision,
    max_tokens: int,
    dataset: Dataset,
    rows: Sequence[int],
    terms: Callable[[Answers], Tensor],
) -> _Mean:
    """The gradient of the mean over all terms of the rows."""
    task = model.task_model
    total, count = 0.0, 0
    sums = {name: torch.zeros_like(parameter) for name, parameter in trained.items()}
    for some in physical_batches(dataset, rows, max_tokens, model.device):
        batch = collate(dataset, some, model.device)
        reference: Tensor | None = None
        if remembers:
            with torch.no_grad(), _as_before(trained, before):
                reference = task.logits(batch, precision)
        of_batch_M = terms(answers_of(task.logits(batch, precision), batch, reference))
        loss = of_batch_M.sum()
        for total_of, gradient in zip(
            sums.values(), torch.autograd.grad(loss, list(trained.values())), strict=True
        ):
            total_of += gradient
        total, count = total + float(loss.detach()), count + len(of_batch_M)
    if not np.isfinite(total):
        raise DivergedError(
            f"the loss became {total} while rows were being forgotten; set the learning rate lower"
        )
    return _Mean(loss=total / count, by_name={name: g / count for name, g in sums.items()})


@contextmanager
def _as_before(trained: Mapping[str, nn.Parameter], before: Mapping[str, Tensor]) -> Iterator[None]:
    """The model as it was before the first step."""
    now = {name: parameter.data for name, parameter in trained.items()}
    try:
        for name, parameter in trained.items():
            parameter.data = before[name]
        yield
    finally:
        for name, parameter in trained.items():
            parameter.data = now[name]


def _plan(
    num_forget: int, num_retain: int, config: UnlearningConfig, seed: int
) -> Iterator[tuple[list[int], list[int]]]:
    """The rows of each step: to be forgotten, and to be kept."""
    random = np.random.default_rng(seed)
    for _ in range(config.num_epochs):
        order = random.permutation(num_forget)
        for start in range(0, num_forget, config.batch_size):
            rows = order[start : start + config.batch_size]
            beside = (
                random.choice(num_retain, len(rows), replace=len(rows) > num_retain)
                if num_retain
                else np.empty(0, dtype=np.int64)
            )
            yield rows.tolist(), beside.tolist()


def _rates(
    optimizer: torch.optim.Optimizer, config: UnlearningConfig, num_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    from transformers import get_linear_schedule_with_warmup

    warmup = round(config.warmup_epochs * num_steps / config.num_epochs)
    schedule: torch.optim.lr_scheduler.LambdaLR = get_linear_schedule_with_warmup(
        optimizer, num_warmup_steps=warmup, num_training_steps=num_steps
    )
    return schedule
