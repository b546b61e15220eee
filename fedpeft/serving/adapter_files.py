"""An adapter as its export in PEFT format holds it.

Legend: R rank, I inputs, O outputs, C classes, H hidden features.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from fedpeft.adapters.config import AdapterConfig
from fedpeft.adapters.lora import Lora, lora_pairs
from fedpeft.adapters.peft_files import load_tensors, read_peft
from fedpeft.errors import AdapterError
from fedpeft.federated.export import HEAD_FILE, MANIFEST_FILE, TASK_TYPES
from fedpeft.models.tasks import BASE, HEAD
from fedpeft.types import is_finite, tensor_digest

Task = Literal["classification", "causal-lm"]
_LARGEST_ALPHA = 1e6


@dataclass(frozen=True, kw_only=True)
class Head:
    """Weight of shape (C, H) and bias of shape (C,)."""

    weight_CH: Tensor
    bias_C: Tensor


@dataclass(frozen=True, kw_only=True)
class AdapterFiles:
    """What is in an export.

    Attributes:
        digest: Of its tensors: the version's name.
        base_model: The name that its maker gave the base model.
        labels: Of a classifier, in the order of its classes.
        max_length: Longer rows were cut in training, in tokens; None where the export says none.
        factors: Module of the base model → A of shape (R, I), and B of shape (O, R) times the
            scaling.
        head: Of a classifier.
    """

    digest: str
    task: Task
    base_model: str
    labels: tuple[str, ...]
    max_length: int | None
    factors: Mapping[str, tuple[Tensor, Tensor]]
    head: Head | None


def read_adapter_files(folder: Path) -> AdapterFiles:
    """Reads an export that `fedpeft adapter export` or the peft library wrote.

    Raises:
        AdapterError: If a file is missing, truncated, or not what such an export holds.
    """
    stored, _ = read_peft(folder, "LORA")
    config = _config(folder, stored)
    tensors = Lora().import_peft(folder, config, prefix=BASE)
    if (folder / HEAD_FILE).is_file():
        tensors |= load_tensors(folder / HEAD_FILE)
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise AdapterError(f"{folder}: {name} holds NaN or infinite values")
    about = _about(folder, stored)
    head = _head(folder, tensors, about["labels"])
    if (head is None) == (about["task"] == "classification"):
        raise AdapterError(
            f"{folder}: a classifier has {HEAD_FILE} and a language model has not, but the task is "
            f"{about['task']}"
        )
    pairs = lora_pairs(tensors)
    if not pairs:
        raise AdapterError(f"{folder}: the adapter adapts no module")
    return AdapterFiles(
        digest=tensor_digest(tensors),
        task=about["task"],
        base_model=about["base_model"],
        labels=tuple(about["labels"]),
        max_length=about["max_length"],
        factors={
            module.removeprefix(f"{BASE}."): (a_RI, b_OR * config.scaling)
            for module, (a_RI, b_OR) in pairs.items()
        },
        head=head,
    )


def _config(folder: Path, stored: Mapping[str, Any]) -> AdapterConfig:
    rank, alpha = stored.get("r"), stored.get("lora_alpha")
    # bool is an int, and a JSON file may say true.
    sound = type(rank) is int and rank >= 1 and type(alpha) in (int, float)
    if not sound or not 0 < float(alpha or 0) < _LARGEST_ALPHA:
        raise AdapterError(
            f"{folder}: expected a rank of 1 or more and a positive lora_alpha, got {rank!r} and "
            f"{alpha!r}"
        )
    return AdapterConfig(rank=int(rank or 0), alpha=float(alpha or 0), target_modules=("*",))


def _about(folder: Path, stored: Mapping[str, Any]) -> dict[str, Any]:
    """What stands beside the tensors; the peft library writes less of it."""
    path = folder / MANIFEST_FILE
    if not path.is_file():
        tasks = {kind: task for task, kind in TASK_TYPES.items() if task == "causal-lm"}
        if stored.get("task_type") not in tasks:
            raise AdapterError(
                f"{folder} has no {MANIFEST_FILE}, without which only a causal language model can "
                f"be served, and its task_type is {stored.get('task_type')!r}"
            )
        base = str(stored.get("base_model_name_or_path") or "")
        return {"task": "causal-lm", "base_model": base, "labels": [], "max_length": None}
    try:
        about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        labels, length = about["labels"], about["max_length"]
        fits = (
            about["task"] in TASK_TYPES
            and isinstance(about["base_model"], str)
            and isinstance(labels, list)
            and all(isinstance(label, str) for label in labels)
            and type(length) is int
            and length >= 1
            and about["pooling"] in (None, "mean")
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise AdapterError(f"{path} is not what an export holds: {error!r}") from error
    if not fits:
        raise AdapterError(f"{path} is not what an export holds; export the adapter again")
    return about


def _head(folder: Path, tensors: Mapping[str, Tensor], labels: list[str]) -> Head | None:
    names = {f"{HEAD}.weight", f"{HEAD}.bias"}
    found = {name for name in tensors if not name.startswith(f"{BASE}.")}
    if not found:
        return None
    if found != names:
        raise AdapterError(
            f"{folder}: {HEAD_FILE} should hold {sorted(names)}, not {sorted(found)}"
        )
    weight_CH, bias_C = tensors[f"{HEAD}.weight"].float(), tensors[f"{HEAD}.bias"].float()
    if weight_CH.ndim != 2 or bias_C.shape != (len(labels),) or len(weight_CH) != len(labels):
        raise AdapterError(
            f"{folder}: the head is for {weight_CH.shape[0]} classes and there are {len(labels)} "
            "labels"
        )
    return Head(weight_CH=weight_CH, bias_C=bias_C)
