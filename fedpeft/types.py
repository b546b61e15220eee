"""Digests and derived seeds that every layer shares."""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

TensorDict: TypeAlias = "Mapping[str, Tensor]"


def derive_seed(root: int, *path: str | int) -> int:
    """Returns a 63-bit seed for one purpose, independent of every other path.

    `derive_seed(7, "partition")` and `derive_seed(7, "sampling", 3, "client-00")` share nothing
    that an observer of one could use on the other, and adding a purpose never shifts another one.
    """
    message = json.dumps([root, *path]).encode()
    return int.from_bytes(hashlib.sha256(message).digest()[:8], "big") >> 1


def tensor_digest(tensors: TensorDict) -> str:
    """Returns the sha256 over names, dtypes, shapes and bytes, in order of name."""
    import torch

    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        header = json.dumps([name, str(tensor.dtype), list(tensor.shape)])
        sha.update(header.encode())
        sha.update(tensor.flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()


def is_finite(tensor: "Tensor") -> bool:
    """Returns whether no value is NaN or infinite: one pass, where `isfinite` makes tables."""
    if tensor.numel() == 0:
        return True
    least, most = tensor.detach().aminmax()  # a NaN anywhere makes both NaN
    return math.isfinite(least) and math.isfinite(most)


def size_bytes(tensors: TensorDict) -> int:
    """Returns the bytes that the tensors' elements take."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
