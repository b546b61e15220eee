"""The arms of Opacus: the same LoRA as peft builds it, trained by its hooks and by ghost clipping.

As its authors advise: every trained parameter belongs to an `nn.Linear`, for which Opacus has
samplers of its own; only these modules are in training mode, so that no dropout runs and nothing
else is hooked; gradients are set to None; `secure_mode` is off, so that noise is one call of
`torch.normal`. Per-row losses are means over the row, and the batch is a mean over rows.

Yousefpour et al., 2021, "Opacus: User-Friendly Differential Privacy Library in PyTorch".
"""

import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from fedpeft.adapters.linear import is_transposed
from fedpeft.adapters.lora import LORA_A, LORA_B
from fedpeft.bench.cases import NUM_CLASSES, Case
from fedpeft.bench.step_arms import NOISE_MULTIPLIER, sgd
from fedpeft.models.dataset import Batch
from fedpeft.models.tasks import BASE

OPACUS_HOOKS, OPACUS_GHOST = "opacus hooks", "opacus ghost"
_PEFT_FACTOR = {LORA_A: "lora_A.default.weight", LORA_B: "lora_B.default.weight"}


def is_installed() -> bool:
    """Returns whether Opacus can be imported here."""
    return find_spec("opacus") is not None


class PeftModule(nn.Module):
    """Base model with peft's LoRA, and the logits and targets of a batch."""

    def __init__(
        self, base: nn.Module, case: Case, modules: list[str], tensors: Mapping[str, Tensor]
    ) -> None:
        """Takes the adapter and head of an `AdaptedModel` by their names there."""
        from peft import LoraConfig, get_peft_model

        super().__init__()
        features: int = base.config.hidden_size  # type: ignore[union-attr, assignment]
        device = next(base.parameters()).device
        targets = [name.removeprefix(f"{BASE}.") for name in modules]
        config = LoraConfig(
            r=case.rank,
            lora_alpha=case.rank,
            lora_dropout=0.0,
            target_modules=targets,
            fan_in_fan_out=any(is_transposed(base.get_submodule(name)) for name in targets),
        )
        with warnings.catch_warnings():
            # peft asks transformers for what it has renamed.
            warnings.simplefilter("ignore", FutureWarning)
            self.base = get_peft_model(base, config)
        self.head = (
            nn.Linear(features, NUM_CLASSES, device=device)
            if case.task == "classification"
            else None
        )
        own = dict(self.named_parameters())
        with torch.no_grad():
            for name, tensor in tensors.items():
                own[peft_name(name)].copy_(tensor)
        self.eval().requires_grad_(False)
        self.trained = {name: own[peft_name(name)] for name in tensors if not name.endswith(LORA_A)}
        for module in self.modules():
            if any(p is q for p in module.parameters(recurse=False) for q in self.trained.values()):
                module.requires_grad_(True).train()

    def forward(self, batch: Batch) -> Tensor:
        """Returns logits, shape (N, C) or (N, T - 1, V)."""
        output = self.base(input_ids=batch.input_ids_NT, attention_mask=batch.attention_mask_NT)
        if self.head is None:
            logits_NTV: Tensor = output.logits[:, :-1]
            return logits_NTV
        hidden_NTH = output.last_hidden_state
        mask_NT1 = batch.attention_mask_NT.unsqueeze(2).to(hidden_NTH.dtype)
        pooled_NH = (hidden_NTH * mask_NT1).sum(1) / mask_NT1.sum(1)
        logits_NC: Tensor = self.head(pooled_NH.to(self.head.weight.dtype))
        return logits_NC


class OpacusArm:
    """One way of Opacus to train a module on one batch."""

    def __init__(self, module: PeftModule, batch: Batch, l2_clip_norm: float, kind: str) -> None:
        """Wraps the module; `kind` is one of the two names above."""
        from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
        from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
        from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

        self.trained: Mapping[str, Any] = module.trained  # Opacus adds attributes to them
        self._batch = batch
        noise: dict[str, Any] = {
            "noise_multiplier": NOISE_MULTIPLIER,
            "max_grad_norm": l2_clip_norm,
            "expected_batch_size": batch.num_rows,
        }
        optimizer = sgd(module.trained.values())
        criterion = nn.CrossEntropyLoss()
        self._criterion: Callable[..., Any] = criterion
        if kind == OPACUS_HOOKS:
            self._module = GradSampleModule(module)
            self._optimizer = DPOptimizer(optimizer, **noise)
        else:
            self._module = GradSampleModuleFastGradientClipping(module, max_grad_norm=l2_clip_norm)
            self._optimizer = DPOptimizerFastGradientClipping(optimizer, **noise)
            self._criterion = DPLossFastGradientClipping(self._module, self._optimizer, criterion)
        self._is_ghost = kind == OPACUS_GHOST

    def step(self) -> None:
        """One step: forward, backward, clipping, noise, SGD."""
        self._backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def per_example_grads(self) -> dict[str, Tensor]:
        """Returns `grad_sample` of each trained parameter, shape (N, ...); of the hooks alone."""
        self._backward()
        grads = {name: parameter.grad_sample for name, parameter in self.trained.items()}
        self._optimizer.zero_grad(set_to_none=True)
        return grads

    def clipped_sum(self) -> dict[str, Tensor]:
        """Returns the sum of clipped gradients, before noise."""
        self._backward()
        if not self._is_ghost:
            self._optimizer.clip_and_accumulate()
        total = {
            name: (parameter.grad if self._is_ghost else parameter.summed_grad).clone()
            for name, parameter in self.trained.items()
        }
        self._optimizer.zero_grad(set_to_none=True)
        return total

    def _backward(self) -> None:
        with warnings.catch_warnings():
            # The lowest adapted module has no input that needs a gradient.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            self._loss().backward()

    def _loss(self) -> Any:
        """The loss alone is returned: logits that stayed until after backward would cost memory."""
        logits = self._module(self._batch)
        if logits.ndim == 2:
            return self._criterion(logits, self._batch.targets_N)
        labels_NT = self._batch.labels_NT()[:, 1:]
        shape = {"shape": logits.shape} if self._is_ghost else {}
        return self._criterion(logits.flatten(0, 1).float(), labels_NT.flatten(), **shape)


def peft_name(name: str) -> str:
    """Returns the name in `PeftModule` of a tensor of an `AdaptedModel`."""
    module, _, factor = name.rpartition(".")
    if factor not in _PEFT_FACTOR:
        return name
    return f"{BASE}.base_model.model.{module.removeprefix(f'{BASE}.')}.{_PEFT_FACTOR[factor]}"
