"""A blob holds exactly what was expected, or is refused before its tensors are touched."""

import json
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedpeft.errors import FedpeftError, ProtocolError
from fedpeft.types import tensor_digest
from fedpeft.wire.blobs import check_blob, from_blob, specs_of, to_blob

TENSORS = {"head.bias": torch.arange(3.0), "base.lora_b": torch.arange(8.0).reshape(4, 2)}
SPECS = specs_of(TENSORS)


def _read(blob: bytes, tensors: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    return from_blob(blob, SPECS, tensor_digest(tensors or TENSORS))


def test_tensors_come_back() -> None:
    back = _read(to_blob(TENSORS))

    assert back.keys() == TENSORS.keys()
    assert all(torch.equal(back[name], TENSORS[name]) for name in TENSORS)


@pytest.mark.parametrize(
    "change",
    [
        {"head.bias": torch.zeros(4)},
        {"head.bias": torch.zeros(3, dtype=torch.float64)},
        {"head.bias": torch.zeros(3, dtype=torch.int32)},
        {"head.bias": torch.zeros(3, 1)},
        {"another": torch.zeros(1)},
        {"../../outside": torch.zeros(1)},
    ],
)
def test_other_tensors_are_refused(change: dict[str, Tensor]) -> None:
    tensors = TENSORS | change

    with pytest.raises(ProtocolError):
        _read(to_blob(tensors), tensors)


def test_a_missing_tensor_is_refused() -> None:
    with pytest.raises(ProtocolError, match="missing"):
        check_blob(to_blob({"head.bias": TENSORS["head.bias"]}), SPECS)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    tensors = {name: tensor.clone() for name, tensor in TENSORS.items()}
    tensors["base.lora_b"][2, 1] = value

    with pytest.raises(ProtocolError, match="NaN or infinite"):
        _read(to_blob(tensors), tensors)


def test_other_values_than_announced_are_refused() -> None:
    with pytest.raises(ProtocolError, match="digest"):
        _read(to_blob({name: tensor + 1 for name, tensor in TENSORS.items()}))


def _with_header(header: object, size: int, length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(size)


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"PK\x03\x04 a zip archive",
        b"\x80\x04\x95 a pickle",
        _with_header({}, 0, length=2**63),
        _with_header([1, 2], 0),
        _with_header({"x": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}}, 4),
        _with_header({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}, 4),
        _with_header({"x": {"dtype": "F32", "shape": ["a"], "data_offsets": [0, 4]}}, 4),
    ],
)
def test_what_is_no_safetensors_is_refused(blob: bytes) -> None:
    with pytest.raises(ProtocolError):
        check_blob(blob, SPECS)


def test_tensors_that_overlap_are_refused() -> None:
    """The header alone does not see it; the library that loads does."""
    header = {
        "head.bias": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]},
        "base.lora_b": {"dtype": "F32", "shape": [4, 2], "data_offsets": [0, 32]},
    }
    with pytest.raises(ProtocolError):
        _read(_with_header(header, 44))


def test_a_blob_far_beyond_what_is_expected_is_refused_unread() -> None:
    with pytest.raises(ProtocolError, match="bytes"):
        check_blob(to_blob({"x": torch.zeros(2**22)}), SPECS)


@given(st.data())
def test_a_damaged_blob_raises_our_error(data: st.DataObject) -> None:
    whole = bytearray(to_blob(TENSORS))
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] ^= data.draw(st.integers(1, 255))
    try:
        back = _read(bytes(whole))
    except FedpeftError as error:
        assert type(error) is ProtocolError  # noqa: PT017
    else:
        assert all(torch.equal(back[name], TENSORS[name]) for name in TENSORS)
