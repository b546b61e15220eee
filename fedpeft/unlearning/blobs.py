"""Tensors of an adapter as bytes: safetensors."""

from collections.abc import Mapping

from torch import Tensor

from fedpeft.errors import AdapterError


def read_tensors(blob: bytes) -> dict[str, Tensor]:
    """Reads an adapter.

    Raises:
        AdapterError: If it is none.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors: dict[str, Tensor] = load(blob)
    except SafetensorError as error:
        raise AdapterError(
            f"the adapter cannot be read as safetensors ({error}); it may be truncated"
        ) from error
    return tensors


def write_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Writes an adapter."""
    from safetensors.torch import save

    blob: bytes = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    return blob
