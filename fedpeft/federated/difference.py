"""By how much two adapters on one base model differ, as functions and not as factors."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from safetensors.torch import load

from fedpeft.adapters.lora import lora_pairs
from fedpeft.errors import AdapterError
from fedpeft.federated.exported import Exported, read_exported


@dataclass(frozen=True, kw_only=True)
class ModuleDifference:
    """One module, or one tensor of a head.

    Attributes:
        first_norm: Frobenius norm of what the first adapter adds to the weight.
        second_norm: The same of the second.
        change_norm: Frobenius norm of the difference.
    """

    module: str
    first_norm: float
    second_norm: float
    change_norm: float

    @property
    def share(self) -> float:
        """The change as a share of the first; infinite where the first adds nothing."""
        if self.change_norm == 0:
            return 0.0
        return self.change_norm / self.first_norm if self.first_norm else float("inf")


def difference(first: Mapping[str, bytes], second: Mapping[str, bytes]) -> list[ModuleDifference]:
    """Compares two exports.

    Args:
        first: Plain name → content of the files.
        second: The same of the other.

    Raises:
        AdapterError: If one of them is no adapter, or they are of different base models.
    """
    a, b = _added(read_exported(first)), _added(read_exported(second))
    found = []
    for name in sorted(a.keys() | b.keys()):
        left = a.get(name, torch.zeros(()))
        right = b.get(name, torch.zeros(()))
        if left.ndim and right.ndim and left.shape != right.shape:
            raise AdapterError(
                f"{name} has shape {tuple(left.shape)} in one and {tuple(right.shape)} in the "
                "other; they are adapters of different base models"
            )
        found.append(
            ModuleDifference(
                module=name,
                first_norm=float(left.norm()),
                second_norm=float(right.norm()),
                change_norm=float((right - left).norm()),
            )
        )
    return found


def _added(exported: Exported) -> dict[str, torch.Tensor]:
    """What is added to each weight: scaling · B · A; of a head its tensors themselves."""
    tensors = load(exported.blob)
    pairs = lora_pairs(tensors)
    factors = {f"{module}.{f}" for module in pairs for f in ("lora_a", "lora_b")}
    heads = {name: tensor for name, tensor in tensors.items() if name not in factors}
    scaling = exported.adapter.scaling
    return heads | {module: scaling * (b @ a) for module, (a, b) in pairs.items()}
