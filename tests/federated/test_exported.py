"""Exports read back, and how far apart two are: against the plain product of the factors."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

from fedpeft.errors import AdapterError
from fedpeft.federated.adapted_model import AdaptedModel
from fedpeft.federated.difference import difference
from fedpeft.federated.exported import read_exported
from fedpeft.registry.folder import read_folder
from fedpeft.types import tensor_digest
from tests.serving.exports import minilm_config, write_export

WEIGHTS = "adapter_model.safetensors"
Made = Callable[..., tuple[AdaptedModel, dict[str, bytes]]]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    def make(seed: int, *, labels: tuple[str, ...] = ("cold", "warm"), rank: int = 4) -> object:
        folder = tmp_path / f"{seed}-{rank}-{len(labels)}"
        model = write_export(
            folder,
            minilm_config(),
            seed=seed,
            rank=rank,
            alpha=8,
            modules=("query",),
            labels=labels,
        )
        return model, read_folder(folder)[0]

    return make  # type: ignore[return-value]


def test_what_was_exported_is_read(made: Made) -> None:
    model, files = made(0)
    read = read_exported(files)
    assert read.digest == tensor_digest(model.tensors())
    assert load(read.blob).keys() == model.tensors().keys()
    assert (read.adapter.rank, read.adapter.scaling) == (4, 2.0)
    assert read.about["labels"] == ["cold", "warm"]


def test_a_difference_is_of_what_is_added(made: Made) -> None:
    (first, files), (second, others) = made(0), made(1)
    a, b = first.tensors(), second.tensors()
    found = {m.module: m for m in difference(files, others)}
    modules = [name.removesuffix(".lora_a") for name in a if name.endswith(".lora_a")]
    assert set(modules) < set(found)
    assert any(name.startswith("head") for name in found)
    for module in modules:
        left, right = (2.0 * t[f"{module}.lora_b"] @ t[f"{module}.lora_a"] for t in (a, b))
        assert found[module].first_norm == pytest.approx(float(left.norm()), rel=1e-5)
        assert found[module].second_norm == pytest.approx(float(right.norm()), rel=1e-5)
        assert found[module].change_norm == pytest.approx(float((right - left).norm()), rel=1e-5)
    assert all(m.change_norm == 0 and m.share == 0 for m in difference(files, files))


def test_other_factors_of_one_product_do_not_differ(made: Made) -> None:
    _, files = made(0)
    tensors = load(files[WEIGHTS])
    for name, tensor in tensors.items():
        tensors[name] = tensor * (4 if "lora_A" in name else 0.25)
    found = difference(files, {**files, WEIGHTS: save(tensors)})
    assert all(m.change_norm == 0 for m in found)


def test_adapters_that_cannot_be_compared(made: Made) -> None:
    _, files = made(0)
    _, three = made(0, labels=("a", "b", "c"))
    with pytest.raises(AdapterError, match="different base models"):
        difference(files, three)
    _, wider = made(0, rank=8)
    assert all(m.change_norm > 0 for m in difference(files, wider) if "query" in m.module)


def test_half_a_pair_or_another_rank_is_no_adapter(made: Made) -> None:
    _, files = made(0)
    tensors = load(files[WEIGHTS])
    name = next(name for name in tensors if "lora_A" in name)
    short = {**tensors, name: tensors[name][:2].clone()}
    alone = {other: tensor for other, tensor in tensors.items() if other != name}
    both = name.replace("lora_A", "lora_B")
    smaller = short | {both: torch.ones(tensors[both].shape[0], 2)}
    for odd, match in ((short, "needs lora_a"), (alone, "needs lora_a"), (smaller, "of rank 2")):
        with pytest.raises(AdapterError, match=match):
            read_exported({**files, WEIGHTS: save(odd)})
