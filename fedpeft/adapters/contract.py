"""What every adapter method offers to the rest: the contract behind which a method is one file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from fedpeft.adapters.config import AdapterConfig


class AdapterMethod(Protocol):
    """One adapter method.

    Tensors are named by their full parameter name in the adapted model,
    `<module>.lora_a`, `<module>.lora_b`; they are float32.
    """

    name: str

    def inject(self, model: nn.Module, config: AdapterConfig, seed: int) -> list[str]:
        """Wraps the modules that the configuration names; the model computes what it did before.

        Every parameter of the base model is frozen. Returns the names of the adapted modules.

        Raises:
            ModelError: If a pattern matches nothing; the message lists what it could have matched.
            AdapterError: If the rank does not fit a module.
        """

    def set_trainable(self, model: nn.Module, factors: Sequence[str]) -> None:
        """Trains the named factors (such as 'lora_b') of every adapted module, no other one."""

    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        """Returns copies of all adapter tensors, trained or not, on the CPU."""

    def load(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Copies adapter tensors into the model.

        Raises:
            AdapterError: If names, shapes or finiteness are not what the model expects.
        """

    def delta_norm(self, tensors: Mapping[str, Tensor], config: AdapterConfig) -> float:
        """Returns the Frobenius norm of the change of all weights together."""

    def merge(self, model: nn.Module) -> None:
        """Adds the update to the base weights and unwraps the modules, in place."""

    def export_peft(
        self,
        model: nn.Module,
        tensors: Mapping[str, Tensor],
        config: AdapterConfig,
        directory: Path,
        *,
        base_model: str,
        task_type: str,
        prefix: str,
    ) -> None:
        """Writes the adapter as the peft library stores it; `prefix` leads to the base model."""

    def import_peft(
        self, directory: Path, config: AdapterConfig, *, prefix: str
    ) -> dict[str, Tensor]:
        """Reads an adapter that `export_peft` or the peft library wrote.

        Raises:
            AdapterError: If a file is missing, truncated, or not an adapter of this method with
                the configuration's rank and scaling.
        """
