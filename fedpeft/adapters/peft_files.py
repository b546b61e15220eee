"""The two files in which the peft library stores an adapter."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedpeft.errors import AdapterError

if TYPE_CHECKING:
    from peft import PeftConfig

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"


def write_peft(directory: Path, tensors: Mapping[str, Tensor], config: "PeftConfig") -> None:
    """Writes weights and configuration into `directory`, which is made where it is absent."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file({name: t.contiguous() for name, t in tensors.items()}, directory / WEIGHTS_FILE)
    config.save_pretrained(str(directory))


def read_peft(directory: Path, peft_type: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns the stored configuration, and the stored tensors by peft's names.

    Raises:
        AdapterError: If a file is missing or truncated, or the adapter is of another type.
    """
    config_path, weights_path = directory / CONFIG_FILE, directory / WEIGHTS_FILE
    for path in (config_path, weights_path):
        if not path.is_file():
            raise AdapterError(f"{directory} is no PEFT adapter: {path.name} is missing")
    try:
        config: dict[str, Any] = json.loads(config_path.read_text(encoding="utf-8"))
        found = config.get("peft_type")
    except (ValueError, AttributeError) as error:
        raise AdapterError(f"{config_path} is not a JSON object: {error}") from error
    if found != peft_type:
        raise AdapterError(f"{config_path}: expected peft_type {peft_type}, got {found}")
    return config, load_tensors(weights_path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Reads a safetensors file, the only tensor format that fedpeft reads.

    Raises:
        AdapterError: If it is missing, unreadable, truncated or not safetensors.
    """
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise AdapterError(
            f"{path} cannot be read as safetensors ({error}); it may be truncated: fetch or write "
            "it again"
        ) from error
    return tensors
