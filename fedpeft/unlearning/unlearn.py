"""From a deployed adapter and rows to be forgotten to the adapter's successor."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor, nn

from fedpeft.adapters.config import AdapterConfig
from fedpeft.adapters.linear import is_transposed
from fedpeft.errors import DataError
from fedpeft.federated.adapted_model import AdaptedModel
from fedpeft.models.dataset import Dataset
from fedpeft.models.model_config import ModelConfig
from fedpeft.types import derive_seed
from fedpeft.unlearning.config import UnlearningConfig
from fedpeft.unlearning.fisher import fisher_information
from fedpeft.unlearning.forgetting import Step, forget_rows
from fedpeft.unlearning.low_rank_edit import LowRankEdit, Successor, merged_weights
from fedpeft.unlearning.low_rank_start import relative_importance
from fedpeft.unlearning.objectives import OBJECTIVES


@dataclass(frozen=True, kw_only=True)
class Deployed:
    """An adapter in use.

    Attributes:
        model: Of its base model.
        adapter: Its rank, scaling and modules.
        tensors: Adapter and head, by name.
        num_classes: Of a classifier; 0 for a language model.
    """

    model: ModelConfig
    adapter: AdapterConfig
    tensors: Mapping[str, Tensor]
    num_classes: int


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where an unlearning is.

    Attributes:
        phase: "importance" goes by rows, "steps" by steps.
        done: Rows or steps.
        total: Of them.
        step: The last one, in "steps".
    """

    phase: Literal["importance", "steps"]
    done: int
    total: int
    step: Step | None = None


def unlearn(
    base: nn.Module,
    deployed: Deployed,
    forget: Dataset,
    retain: Dataset,
    config: UnlearningConfig,
    *,
    seed: int,
    told: Callable[[Progress], None] = lambda progress: None,
    watched: Callable[[LowRankEdit, Step], None] = lambda edit, step: None,
) -> Successor:
    """Makes an adapter forget rows.

    Args:
        base: From `load_base_model`; it is used up.
        deployed: What to start from.
        forget: Rows to be forgotten, tokenized for the model.
        retain: Rows that stay: of the same kind, and none of the former.
        config: The method and its settings.
        seed: Draws the order of rows, and A of a start at zero.
        told: Hears how far it is.
        watched: Sees the change after each step; what it raises ends the unlearning.

    Returns:
        An adapter on the same base model, which every reader of adapters can load.

    Raises:
        AdapterError: If the adapter does not fit the model, or a rank does not fit a module.
        DataError: If there is nothing to forget, nothing to keep, or a row is in both.
        DivergedError: If a loss is no finite number.
        ModelError: If no module matches.
    """
    _check_apart(forget, retain)
    model = AdaptedModel(
        base, deployed.model, deployed.adapter, num_classes=deployed.num_classes, seed=seed
    )
    patterns = config.target_modules or deployed.adapter.target_modules
    weights = merged_weights(model, deployed.tensors, patterns)
    importance = None
    if config.starts_from_importance:
        importance = _importance(model, weights, forget, retain, deployed, config, seed, told)
    edit = LowRankEdit(
        model,
        deployed.tensors,
        deployed.model,
        config,
        num_classes=deployed.num_classes,
        seed=seed,
        importance=importance,
    )

    def step_finished(step: Step) -> None:
        told(Progress(phase="steps", done=step.number, total=step.num_steps, step=step))
        watched(edit, step)

    forget_rows(
        edit.model,
        forget,
        retain,
        OBJECTIVES[config.method],
        config,
        precision=deployed.model.precision,
        max_tokens=deployed.model.max_tokens_per_batch,
        seed=derive_seed(seed, "order"),
        step_finished=step_finished,
    )
    return edit.successor()


def _importance(
    model: AdaptedModel,
    weights: Mapping[str, nn.Parameter],
    forget: Dataset,
    retain: Dataset,
    deployed: Deployed,
    config: UnlearningConfig,
    seed: int,
    told: Callable[[Progress], None],
) -> dict[str, Tensor]:
    random = np.random.default_rng(derive_seed(seed, "importance"))
    some = random.permutation(len(retain))[: config.importance_rows]
    total, done = len(forget) + len(some), 0

    def advanced(num_rows: int) -> None:
        nonlocal done
        done += num_rows
        told(Progress(phase="importance", done=done, total=total))

    of_forget, of_retain = (
        fisher_information(
            model.task_model,
            weights,
            rows,
            batch_size=config.importance_batch_size,
            max_tokens=deployed.model.max_tokens_per_batch,
            advanced=advanced,
        )
        for rows in (forget, retain.take(some.tolist()))
    )
    found = {}
    for name in weights:
        ratio = relative_importance(of_forget[name], of_retain[name])
        transposed = is_transposed(model.task_model.get_submodule(name))
        found[name] = ratio.T if transposed else ratio
    return found


def _check_apart(forget: Dataset, retain: Dataset) -> None:
    """A row that is to be forgotten and to be kept would be both."""
    gone = set(_rows(forget))
    both = sum(row in gone for row in _rows(retain))
    if both:
        raise DataError(f"{both} rows are to be forgotten and to be kept; take them out of one")


def _rows(dataset: Dataset) -> list[tuple[tuple[int, ...], int]]:
    return [
        (tuple(ids), target) for ids, target in zip(dataset.input_ids, dataset.targets, strict=True)
    ]
