"""An adapter in PEFT format, read back into the tensors that it was exported from."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from fedpeft.adapters.config import AdapterConfig
from fedpeft.adapters.lora import Lora, lora_pairs
from fedpeft.adapters.peft_files import CONFIG_FILE, load_tensors
from fedpeft.errors import AdapterError
from fedpeft.federated.export import HEAD_FILE, MANIFEST_FILE
from fedpeft.models.tasks import BASE
from fedpeft.types import is_finite, tensor_digest


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An export, as tensors.

    Attributes:
        digest: Of the tensors.
        blob: The tensors as safetensors.
        adapter: Rank, scaling and modules, as `[adapter]` of a run says them.
        about: What `fedpeft.json` says: base_model, task, labels, max_length.
    """

    digest: str
    blob: bytes
    adapter: AdapterConfig
    about: Mapping[str, Any]


def read_exported(files: Mapping[str, bytes]) -> Exported:
    """Reads the files of an export.

    Args:
        files: Plain name → content.

    Raises:
        AdapterError: If a file is missing or cannot be read, the adapter is no plain LoRA, its
            factors do not fit one another or the rank, or a value is not finite.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name, content in files.items():
            if Path(name).name != name or name.startswith("."):
                raise AdapterError(f"a file of an export has a plain name, got {name[:80]!r}")
            (folder / name).write_bytes(content)
        about, config = _json(folder / MANIFEST_FILE), _json(folder / CONFIG_FILE)
        adapter = _adapter(config)
        tensors: dict[str, Tensor] = Lora().import_peft(folder, adapter, prefix=BASE)
        for module, (a, _) in lora_pairs(tensors).items():
            if a.shape[0] != adapter.rank:
                raise AdapterError(
                    f"{module} has factors of rank {a.shape[0]}, and {CONFIG_FILE} says "
                    f"{adapter.rank}"
                )
        if (folder / HEAD_FILE).exists():
            tensors |= load_tensors(folder / HEAD_FILE)
    if not tensors or not all(map(is_finite, tensors.values())):
        raise AdapterError("an adapter has tensors, and all of their values are finite")
    return Exported(digest=tensor_digest(tensors), blob=save(tensors), adapter=adapter, about=about)


def _adapter(config: Mapping[str, Any]) -> AdapterConfig:
    rank, alpha, modules = config.get("r"), config.get("lora_alpha"), config.get("target_modules")
    try:
        return AdapterConfig.model_validate(
            {"rank": rank, "alpha": alpha, "target_modules": tuple(modules or ())}
        )
    except (TypeError, ValueError) as error:
        raise AdapterError(f"{CONFIG_FILE} is of no plain LoRA: {error}") from error


def _json(path: Path) -> Mapping[str, Any]:
    try:
        read = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"{path.name} of the export is missing or no JSON") from error
    if not isinstance(read, dict):
        raise AdapterError(f"{path.name} of the export is no JSON object")
    return read
