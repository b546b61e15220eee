"""The digest that a base model is known by between machines."""

from typing import Literal, get_args

from fedpeft.errors import ModelError
from fedpeft.models.base_model import load_base_model
from fedpeft.models.model_config import ModelConfig
from fedpeft.types import tensor_digest

Task = Literal["classification", "causal-lm"]


def base_digest(name: str, task: Task, *, revision: str | None = None) -> str:
    """Returns the sha256 over the tensors of a base model as a task loads it.

    Args:
        name: A folder, 'package:<distribution>' or a hub id.
        task: For classification an encoder's tensors, for causal LM those of its head as well.
        revision: Of a hub id.

    Raises:
        ModelError: If it cannot be loaded for the task.
    """
    config = ModelConfig(name=name, task=task, revision=revision, device="cpu")
    return tensor_digest(load_base_model(config).state_dict())


def base_digests(name: str, *, revision: str | None = None) -> dict[Task, str]:
    """Returns the digest for each task that the model can be loaded for.

    Raises:
        ModelError: If it can be loaded for none.
    """
    found: dict[Task, str] = {}
    problems: list[ModelError] = []
    for task in get_args(Task):
        try:
            found[task] = base_digest(name, task, revision=revision)
        except ModelError as error:
            problems.append(error)
    if not found:
        raise problems[0]
    return found
