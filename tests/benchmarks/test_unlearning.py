"""The table of unlearning on TOFU, on stories260k: no result, but every step of it."""

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fedpeft.adapters.config import AdapterConfig
from fedpeft.federated.adapted_model import AdaptedModel
from fedpeft.models.base_model import load_base_model
from fedpeft.models.dataset import Dataset, collate
from fedpeft.models.model_config import ModelConfig

FOLDER = Path(__file__).parents[2] / "benchmarks" / "unlearning"
ROWS = Dataset(
    input_ids=[[1, 300, 17, 45, 2], [1, 300, 9], [1, 22, 17, 45, 46, 47, 300, 2]],
    targets=[2, 1, 3],
    pad_id=2,
)


@pytest.fixture
def kept_layers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module("kept_layers")
    sys.modules.pop("kept_layers")


def losses_and_gradients(model: AdaptedModel) -> list[torch.Tensor]:
    names = set(model.set_trainable(("lora_a", "lora_b")))
    trained = [p for name, p in model.task_model.named_parameters() if name in names]
    losses_N = model.task_model.losses(collate(ROWS, range(len(ROWS)), model.device))
    return [losses_N.detach(), *torch.autograd.grad(losses_N.sum(), trained)]


def test_kept_layers_are_the_same_model(shared_models: Path, kept_layers: Any) -> None:
    config = ModelConfig(
        name=str(shared_models / "stories260k"),
        task="causal-lm",
        precision="bfloat16",
        device="cpu",
    )
    adapter = AdapterConfig(rank=4, target_modules=("*.layers.3.*_proj", "*.layers.4.*_proj"))
    whole, kept = (
        AdaptedModel(base, config, adapter, num_classes=0, seed=0)
        for base in (load_base_model(config), load_base_model(config))
    )
    states: dict[tuple[int, ...], torch.Tensor] = {}
    kept_layers.keep_lowest(kept.task_model.base, 3, states, pad_id=ROWS.pad_id)
    changed = {
        name: torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)) / 10
        for name, tensor in whole.tensors().items()
    }
    for model in (whole, kept):
        model.load(changed)
    expected = losses_and_gradients(whole)
    for _ in range(2):  # computed, and looked up
        for a, b in zip(losses_and_gradients(kept), expected, strict=True):
            assert torch.allclose(a, b, rtol=2e-2, atol=2e-2 * float(b.abs().max()))
    assert len(states) == len(ROWS)
    states[tuple(ROWS.input_ids[0])] += 1
    assert not torch.allclose(losses_and_gradients(kept)[0], expected[0], rtol=2e-2)


@pytest.mark.slow
def test_cells_and_table(shared_models: Path, shared_data: Path, tmp_path: Path) -> None:
    output = tmp_path / "cells"

    def cells(*more: str) -> None:
        subprocess.run(
            [
                *(sys.executable, str(FOLDER / "tofu.py")),
                *("--model", str(shared_models / "stories260k")),
                *("--data", str(shared_data / "tofu"), "--output", str(output)),
                *("--split", "forget01", "--seed", "0", "--layers", "3", "5"),
                *("--method", "loku", "gradient-ascent", *more),
            ],
            check=True,
        )

    cells("--tune", "--rate", "2e-3", "1e-2")
    cells()
    names = {path.name for path in output.glob("forget01-*.json")}
    assert names == {
        f"forget01-{name}-0.json" for name in ("full", "reference", "loku", "gradient-ascent")
    }
    full = json.loads((output / "forget01-full-0.json").read_text())
    reference = json.loads((output / "forget01-reference-0.json").read_text())
    assert full["forget_loss"] < reference["forget_loss"]
    assert len(full["truth_ratios"]) == 40
    before = {path: path.stat().st_mtime_ns for path in output.iterdir()}
    cells()
    assert {path: path.stat().st_mtime_ns for path in output.iterdir()} == before
    table = subprocess.run(
        [
            *(sys.executable, str(FOLDER / "tofu_table.py"), str(output)),
            *("--figure", str(tmp_path / "figure.svg")),
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert "| reference | 1 | 1 (1 to 1) |" in table
    assert (tmp_path / "figure.svg").stat().st_size > 1000


def test_the_published_table_is_that_of_the_kept_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    module = importlib.import_module("tofu_table")
    found = module.cells(FOLDER / "results")
    written = (FOLDER.parents[1] / "docs" / "results.md").read_text()
    for split in {split for split, _ in found}:
        assert module.table(found, split) in written
        assert module.differences(found, split) in written
    assert len(found["forget01", "loku"]) == 3
