"""The finished adapter on disk, scored by the peft library in another process."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedpeft.adapters.peft_files import WEIGHTS_FILE
from fedpeft.errors import VerificationError
from fedpeft.federated.assembly import Assembly
from fedpeft.federated.export import (
    HEAD_FILE,
    compare_metrics,
    export_adapter,
    reload_and_score,
)
from fedpeft.models.evaluation import evaluate
from tests.federated.small_runs import SmallRun, run_config


def exported(run: SmallRun, directory: Path) -> tuple[Assembly, Mapping[str, float]]:
    """An adapter that was trained by nobody, and how it scores in this process."""
    assembly = run.assemble()
    torch.manual_seed(3)
    tensors = {n: t + 0.1 * torch.randn_like(t) for n, t in assembly.model.tensors().items()}
    assembly.model.load(tensors)
    model = run.config.model
    metrics = evaluate(
        assembly.model.task_model,
        assembly.test,
        task=model.task,
        max_tokens=model.max_tokens_per_batch,
    )
    export_adapter(directory, assembly.model, tensors, model, assembly.labels)
    return assembly, metrics


def rescored(run: SmallRun, directory: Path, assembly: Assembly) -> dict[str, float]:
    return reload_and_score(directory, run.config.model, run.config.data, assembly.labels, seed=0)


@pytest.fixture
def run(tiny_bert: Path, tmp_path: Path) -> SmallRun:
    config = run_config(tiny_bert, tmp_path, adapter={"alpha": 6.0})
    return SmallRun(config=config, folder=tmp_path / "run")


def test_a_classifier_scores_the_same_after_reloading(run: SmallRun, tmp_path: Path) -> None:
    directory = tmp_path / "adapter"
    assembly, expected = exported(run, directory)
    assert compare_metrics(expected, rescored(run, directory, assembly)) < 1e-5
    manifest = json.loads((directory / "fedpeft.json").read_text(encoding="utf-8"))
    assert manifest == {
        "base_model": run.config.model.name,
        "task": "classification",
        "labels": ["cold", "warm"],
        "pooling": "mean",
        "max_length": 24,
    }
    assert sorted(p.suffix for p in directory.iterdir()) == [".json"] * 2 + [".safetensors"] * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "targets"), [("tiny_llama", ("*_proj",)), ("tiny_gpt2", ("c_attn", "c_proj"))]
)
def test_a_language_model_scores_the_same_after_reloading(
    model: str, targets: tuple[str, ...], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    config = run_config(
        request.getfixturevalue(model),
        tmp_path,
        task="causal-lm",
        adapter={"target_modules": targets, "alpha": 6.0},
    )
    run = SmallRun(config=config, folder=tmp_path / "run")
    assembly, expected = exported(run, tmp_path / "adapter")
    assert compare_metrics(expected, rescored(run, tmp_path / "adapter", assembly)) < 1e-5
    assert not (tmp_path / "adapter" / HEAD_FILE).exists()


@pytest.mark.parametrize(
    "tampering",
    [
        "one factor",
        *(
            pytest.param(how, marks=pytest.mark.slow)
            for how in ("head", "alpha", "zero B", "other names", "truncated", "no head")
        ),
    ],
)
def test_what_was_tampered_with_does_not_pass(
    run: SmallRun, tmp_path: Path, tampering: str
) -> None:
    directory = tmp_path / "adapter"
    assembly, expected = exported(run, directory)
    tamper(directory, tampering)
    with pytest.raises(VerificationError):
        compare_metrics(expected, rescored(run, directory, assembly))


def tamper(directory: Path, how: str) -> None:
    file = directory / (HEAD_FILE if "head" in how else WEIGHTS_FILE)
    if how == "alpha":
        file = directory / "adapter_config.json"
        settings = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps(settings | {"lora_alpha": 12}), encoding="utf-8")
        return
    if how == "no head":
        file.unlink()
        return
    if how == "truncated":
        file.write_bytes(file.read_bytes()[:-1])
        return
    tensors = load_file(file)
    if how == "zero B":
        tensors = {n: t if "lora_A" in n else torch.zeros_like(t) for n, t in tensors.items()}
    elif how == "other names":
        tensors = {n.replace("layer.0", "layer.7"): t for n, t in tensors.items()}
    else:
        first = sorted(tensors)[-1]
        tensors[first] = -tensors[first]
    save_file(tensors, file)


METRICS = {"loss": 0.5, "accuracy": 0.75}


def test_equal_metrics_pass_and_the_largest_difference_is_told() -> None:
    assert compare_metrics(METRICS, dict(METRICS)) == 0
    found = {"loss": 0.5 + 2e-5, "accuracy": 0.75 - 3e-5}
    assert compare_metrics(METRICS, found) == pytest.approx(3e-5)
    # Relative where a metric is large, as a perplexity may be.
    assert compare_metrics({"perplexity": 1e6}, {"perplexity": 1e6 + 50}) == pytest.approx(50)


@pytest.mark.parametrize(
    "found",
    [
        {"loss": 0.5, "accuracy": 0.7499 - 1e-5},
        {"loss": 0.51, "accuracy": 0.75},
        {"loss": math.nan, "accuracy": 0.75},
        {"loss": 0.5, "accuracy": math.nan},
        {"loss": math.inf, "accuracy": 0.75},
        {"loss": 0.5},
        {"loss": 0.5, "accuracy": 0.75, "perplexity": 1.0},
        {},
    ],
    ids=str,
)
def test_metrics_that_differ_do_not_pass(found: dict[str, float]) -> None:
    with pytest.raises(VerificationError):
        compare_metrics(METRICS, found)


def test_metrics_that_are_not_numbers_never_pass() -> None:
    with pytest.raises(VerificationError):
        compare_metrics({"loss": math.nan}, {"loss": math.nan})
