"""A task model with an adapter in it, whose state is a flat dictionary of tensors."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fedpeft.adapters.config import AdapterConfig
from fedpeft.adapters.contract import AdapterMethod
from fedpeft.adapters.lora import Lora
from fedpeft.errors import AdapterError
from fedpeft.models.checkpointing import checkpoint_layers
from fedpeft.models.model_config import ModelConfig
from fedpeft.models.tasks import BASE, HEAD, CausalLanguageModel, SequenceClassifier
from fedpeft.types import derive_seed

METHODS: dict[str, AdapterMethod] = {"lora": Lora()}


class AdaptedModel:
    """Base model, task head and adapter.

    Attributes:
        task_model: What runs.
        method: The adapter method.
        adapted_modules: Names of the adapted modules.
    """

    def __init__(
        self,
        base: nn.Module,
        model_config: ModelConfig,
        adapter_config: AdapterConfig,
        *,
        num_classes: int,
        seed: int,
    ) -> None:
        """Injects the adapter; the seed draws its initial A and a frozen head."""
        self.task_model: SequenceClassifier | CausalLanguageModel
        self.method = METHODS[adapter_config.method]
        self.adapter_config = adapter_config
        self._head_trained = model_config.head == "trained"
        if model_config.task == "classification":
            self.task_model = SequenceClassifier(
                base, num_classes, precision=model_config.precision
            )
            if not self._head_trained:
                generator = torch.Generator().manual_seed(derive_seed(seed, "head"))
                self.task_model.head.freeze_random(generator)
        else:
            self.task_model = CausalLanguageModel(base, precision=model_config.precision)
        self.adapted_modules = self.method.inject(self.task_model, adapter_config, seed)
        self.task_model.eval().to(device_of(model_config.device))
        if model_config.gradient_checkpointing:
            checkpoint_layers(base)
        if model_config.compile:
            # In place, so that parameters keep their names. The sizes of a batch are inputs of the
            # graph and so are the parameters by row, so that other ones run the same graph.
            base.compile(dynamic=True)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.task_model.parameters()).device

    def set_trainable(self, factors: Sequence[str]) -> list[str]:
        """Trains the named adapter factors, and the head unless it is frozen; returns the names."""
        self.method.set_trainable(self.task_model, factors)
        for parameter in self._head().values():
            parameter.requires_grad_(self._head_trained)
        return [name for name, p in self.task_model.named_parameters() if p.requires_grad]

    def tensors(self) -> dict[str, Tensor]:
        """Returns copies of all adapter and head tensors, on the CPU."""
        head = {name: p.detach().cpu().clone() for name, p in self._head().items()}
        return self.method.tensors(self.task_model) | head

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copies adapter and head tensors into the model.

        Raises:
            AdapterError: If names, shapes or finiteness are not what the model expects.
        """
        head = self._head()
        for name, parameter in head.items():
            if name not in tensors or tensors[name].shape != parameter.shape:
                raise AdapterError(f"{name}: expected a tensor of shape {tuple(parameter.shape)}")
            if not torch.isfinite(tensors[name]).all():
                raise AdapterError(f"{name} holds NaN or infinite values")
        self.method.load(self.task_model, {n: t for n, t in tensors.items() if n not in head})
        with torch.no_grad():
            for name, parameter in head.items():
                parameter.copy_(tensors[name])

    def delta_norm(self, tensors: Mapping[str, Tensor]) -> float:
        """Returns the Frobenius norm of the change of the base weights."""
        return self.method.delta_norm(tensors, self.adapter_config)

    def _head(self) -> dict[str, nn.Parameter]:
        return {
            name: p for name, p in self.task_model.named_parameters() if name.startswith(f"{HEAD}.")
        }


def head_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors of the head."""
    return {name: t for name, t in tensors.items() if name.startswith(f"{HEAD}.")}


def adapter_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors of the adapter."""
    return {name: t for name, t in tensors.items() if name.startswith(f"{BASE}.")}


def device_of(name: str) -> torch.device:
    """Returns what `model.device` means on this machine."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)
