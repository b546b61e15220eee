"""An adapter as its export in PEFT format holds it, ready to be served.

Legend: R rank, I inputs, O outputs, C classes, H hidden features.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load
from torch import Tensor

from fedpeft.adapters.lora import lora_pairs
from fedpeft.errors import AdapterError
from fedpeft.federated.adapted_model import adapter_tensors, head_tensors
from fedpeft.federated.export import HEAD_FILE, MANIFEST_FILE, TASK_TYPES
from fedpeft.federated.exported import read_exported
from fedpeft.models.tasks import BASE, HEAD
from fedpeft.registry.folder import read_folder
from fedpeft.serving.config import Task


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
        max_length: Longer rows were cut in training, in tokens.
        factors: Module of the base model → A of shape (R, I), and B of shape (O, R) times the
            scaling.
        head: Of a classifier.
    """

    digest: str
    task: Task
    base_model: str
    labels: tuple[str, ...]
    max_length: int
    factors: Mapping[str, tuple[Tensor, Tensor]]
    head: Head | None


def read_adapter_files(files: Mapping[str, bytes]) -> AdapterFiles:
    """Reads the files of an export.

    Args:
        files: Plain name → content.

    Raises:
        AdapterError: If a file is missing, truncated, or not what an export holds.
    """
    exported = read_exported(files)
    tensors = load(exported.blob)
    about = _checked(exported.about)
    head = _head(head_tensors(tensors), about["labels"])
    if (head is None) == (about["task"] == "classification"):
        raise AdapterError(
            f"a classifier has {HEAD_FILE} and a language model has not, but the task of the "
            f"export is {about['task']}"
        )
    pairs = lora_pairs(adapter_tensors(tensors))
    if not pairs:
        raise AdapterError("the adapter adapts no module of the base model")
    scaling = exported.adapter.scaling
    return AdapterFiles(
        digest=exported.digest,
        task=about["task"],
        base_model=about["base_model"],
        labels=tuple(about["labels"]),
        max_length=about["max_length"],
        factors={
            module.removeprefix(f"{BASE}."): (a_RI, b_OR * scaling)
            for module, (a_RI, b_OR) in pairs.items()
        },
        head=head,
    )


def read_export_folder(folder: Path) -> AdapterFiles:
    """Reads an export without asking who made it; `read_trusted` asks.

    Raises:
        AdapterError: If it is no export.
    """
    return read_adapter_files(read_folder(folder)[0])


def _checked(about: Mapping[str, Any]) -> Mapping[str, Any]:
    labels, length = about.get("labels"), about.get("max_length")
    fits = (
        about.get("task") in TASK_TYPES
        and isinstance(about.get("base_model"), str)
        and isinstance(labels, list)
        and all(isinstance(label, str) for label in labels)
        and type(length) is int
        and length >= 1
        and about.get("pooling") in (None, "mean")
    )
    if not fits:
        raise AdapterError(f"{MANIFEST_FILE} is not what an export holds; export the adapter again")
    return about


def _head(tensors: Mapping[str, Tensor], labels: list[str]) -> Head | None:
    names = {f"{HEAD}.weight", f"{HEAD}.bias"}
    if not tensors:
        return None
    if set(tensors) != names:
        raise AdapterError(f"expected {sorted(names)} in {HEAD_FILE}, got {sorted(tensors)}")
    weight_CH, bias_C = tensors[f"{HEAD}.weight"].float(), tensors[f"{HEAD}.bias"].float()
    if weight_CH.ndim != 2 or bias_C.shape != (len(labels),) or len(weight_CH) != len(labels):
        raise AdapterError(
            f"the head is for {weight_CH.shape[0]} classes and there are {len(labels)} labels"
        )
    return Head(weight_CH=weight_CH, bias_C=bias_C)
