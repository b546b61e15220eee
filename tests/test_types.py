import hashlib
import json

import pytest
import torch

from fedpeft.types import derive_seed, size_bytes, tensor_digest


def test_a_seed_is_a_function_of_root_and_path() -> None:
    assert derive_seed(7, "sampling", 3, "client-00") == derive_seed(7, "sampling", 3, "client-00")
    assert 0 <= derive_seed(0) < 2**63


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((7, "a"), (8, "a")),
        ((7, "a"), (7, "b")),
        ((7, "a", 1), (7, "a", 11)),
        ((7, "a", 1), (7, "a", "1")),
        ((7, "ab"), (7, "a", "b")),
        ((7, "a"), (7, "a", "")),
        ((7,), (7, 7)),
    ],
)
def test_different_paths_give_different_seeds(left: tuple, right: tuple) -> None:
    assert derive_seed(*left) != derive_seed(*right)


def test_seeds_of_published_runs_never_change() -> None:
    assert derive_seed(0, "partition") == 3305626187439862425


def test_the_digest_is_the_sha256_of_names_headers_and_bytes() -> None:
    tensors = {"b": torch.tensor([1.5, -2.0]), "a": torch.tensor(3, dtype=torch.int64)}
    sha = hashlib.sha256()
    sha.update(json.dumps(["a", "torch.int64", []]).encode() + (3).to_bytes(8, "little"))
    sha.update(json.dumps(["b", "torch.float32", [2]]).encode())
    sha.update(bytes.fromhex("0000c03f000000c0"))
    assert tensor_digest(tensors) == sha.hexdigest()


def test_the_digest_ignores_order_strides_and_gradients() -> None:
    matrix = torch.arange(6.0).reshape(2, 3)
    digest = tensor_digest({"a": matrix, "b": torch.ones(1)})
    assert tensor_digest({"b": torch.ones(1), "a": matrix}) == digest
    strided = matrix.T.contiguous().T.requires_grad_()
    assert tensor_digest({"a": strided, "b": torch.ones(1)}) == digest


def test_the_digest_tells_apart_what_differs() -> None:
    one = torch.tensor([1.0, 0.0])
    different = [
        {"a": one},
        {"b": one},
        {"a": one.double()},
        {"a": one.reshape(1, 2)},
        {"a": torch.tensor([1.0, -0.0])},
        {"a": torch.tensor([1.0, 1e-45])},
        {"a": one.bfloat16()},
        {"a": torch.zeros(0)},
        {"a": one, "b": torch.zeros(0)},
        {},
    ]
    assert len({tensor_digest(tensors) for tensors in different}) == len(different)


def test_size_counts_elements_of_every_dtype() -> None:
    tensors = {
        "a": torch.zeros(2, 3),
        "b": torch.zeros(5, dtype=torch.bfloat16),
        "c": torch.ones(0),
    }
    assert size_bytes(tensors) == 24 + 10
    assert size_bytes({}) == 0
