"""Tensors on the wire: one safetensors blob, checked against what is expected before loading."""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedpeft.errors import ProtocolError
from fedpeft.types import is_finite, tensor_digest

if TYPE_CHECKING:
    from torch import Tensor

_LARGEST_HEADER = 8 * 2**20
_DTYPES = {"F32": 4, "F64": 8, "F16": 2, "BF16": 2}


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """What a tensor must be.

    Attributes:
        dtype: As safetensors writes it, such as "F32".
        shape: Its axes.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of its elements."""
        size = _DTYPES[self.dtype]
        for axis in self.shape:
            size *= axis
        return size


def to_blob(tensors: "Mapping[str, Tensor]") -> bytes:
    """Writes tensors as safetensors."""
    from safetensors.torch import save

    blob: bytes = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    return blob


def specs_of(tensors: "Mapping[str, Tensor]") -> dict[str, TensorSpec]:
    """Returns what a blob of such tensors must hold."""
    return _read_specs(to_blob(tensors))


def check_blob(blob: bytes, expected: Mapping[str, TensorSpec]) -> None:
    """Refuses a blob that does not hold exactly the expected tensors, without loading it.

    Raises:
        ProtocolError: If a name, a dtype, a shape or the size is another.
    """
    size = sum(spec.size_bytes for spec in expected.values())
    if len(blob) > size + _LARGEST_HEADER:
        raise ProtocolError(f"expected tensors of {size} bytes, got a blob of {len(blob)}")
    found = _read_specs(blob)
    if found.keys() != expected.keys():
        odd = sorted(found.keys() ^ expected.keys())
        raise ProtocolError(
            f"expected {len(expected)} tensors; {len(odd)} are missing or unknown, such as "
            f"{odd[0][:80]!r}"
        )
    for name, spec in expected.items():
        if found[name] != spec:
            raise ProtocolError(
                f"{name}: expected {spec.dtype} of shape {spec.shape}, got {found[name].dtype} of "
                f"shape {found[name].shape}"
            )


def from_blob(blob: bytes, expected: Mapping[str, TensorSpec], digest: str) -> "dict[str, Tensor]":
    """Loads the tensors of a blob that was checked.

    Args:
        blob: What `to_blob` wrote.
        expected: What must be in it.
        digest: `types.tensor_digest` that was announced.

    Raises:
        ProtocolError: If they are not the expected ones, are not what was announced, or hold NaN
            or infinite values.
    """
    check_blob(blob, expected)
    tensors = _load(blob)
    if tensor_digest(tensors) != digest:
        raise ProtocolError("the tensors are not those that were announced: their digest differs")
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise ProtocolError(f"{name} holds NaN or infinite values")
    return tensors


def read_blob(blob: bytes) -> "dict[str, Tensor]":
    """Loads the tensors of a blob for somebody who checks them: any names, shapes and values.

    Raises:
        ProtocolError: If it is no sound safetensors with floating-point tensors.
    """
    _read_specs(blob)
    return _load(blob)


def _load(blob: bytes) -> "dict[str, Tensor]":
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors: dict[str, Tensor] = load(blob)
    except SafetensorError as error:
        raise ProtocolError(f"the blob is no sound safetensors ({error})") from error
    return tensors


def _read_specs(blob: bytes) -> dict[str, TensorSpec]:
    """Reads the header alone: what it says of the blob must be what the blob is."""
    if len(blob) < 8:
        raise ProtocolError("expected safetensors, got too few bytes for a header")
    (length,) = struct.unpack("<Q", blob[:8])
    if length > min(_LARGEST_HEADER, len(blob) - 8):
        raise ProtocolError(f"the header of the blob claims {length} bytes, more than there are")
    try:
        header = json.loads(blob[8 : 8 + length])
        header.pop("__metadata__", None)
        specs = {
            name: TensorSpec(dtype=entry["dtype"], shape=tuple(map(int, entry["shape"])))
            for name, entry in header.items()
        }
        if any(
            spec.dtype not in _DTYPES or min(spec.shape, default=1) < 0 for spec in specs.values()
        ):
            raise ProtocolError("the blob holds a tensor that is of no floating-point dtype")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ProtocolError("the header of the blob is not that of safetensors") from error
    if sum(spec.size_bytes for spec in specs.values()) != len(blob) - 8 - length:
        raise ProtocolError("the tensors of the blob are not of the sizes that its header claims")
    return specs
