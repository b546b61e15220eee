"""LoRA: y = W x + (alpha / r) B A x (Hu et al., 2021).

Legend: N rows, T tokens, I inputs, O outputs, R rank.
"""

import math
from collections.abc import Mapping, Sequence
from math import isclose
from pathlib import Path

import torch
from torch import Tensor, nn

from fedpeft.adapters.config import AdapterConfig
from fedpeft.adapters.initializers import initial_lora_a
from fedpeft.adapters.linear import LinearLike, is_transposed, linear_module, weight_of
from fedpeft.adapters.peft_files import read_peft, write_peft
from fedpeft.adapters.targets import match_targets
from fedpeft.errors import AdapterError, PrivacyError
from fedpeft.types import derive_seed

LORA_A, LORA_B = "lora_a", "lora_b"
_PEFT_NAMES = {LORA_A: "lora_A.weight", LORA_B: "lora_B.weight"}
# Settings of peft under which the same factors compute something else.
_VARIANTS = ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "layer_replication")


class LoraLinear(nn.Module):
    """A frozen linear module plus a low-rank update; both factors may be given per row."""

    def __init__(self, base: LinearLike, lora_a_RI: Tensor, scaling: float) -> None:
        """Wraps `base`; B starts at zero."""
        super().__init__()
        weight_OI = weight_of(base)
        self.base = base
        self.scaling = scaling
        self.lora_a = nn.Parameter(lora_a_RI.to(weight_OI.device), requires_grad=False)
        self.lora_b = nn.Parameter(
            torch.zeros(weight_OI.shape[0], lora_a_RI.shape[0], device=weight_OI.device)
        )
        self.row_parameters: dict[str, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Returns the adapted output, shape (..., O), for x of shape (..., I)."""
        rows = self.row_parameters or {}
        # Also where the base model runs in half precision, the factors and their gradients do not.
        with torch.autocast(x.device.type, enabled=False):
            hidden = _project(x.to(self.lora_a.dtype), self.lora_a, rows.get(LORA_A))
            update = _project(hidden, self.lora_b, rows.get(LORA_B))
        out: Tensor = self.base(x)
        return out + (update * self.scaling).to(out.dtype)


def _project(x: Tensor, weight: Tensor, row_weights: Tensor | None) -> Tensor:
    """X @ weightᵀ, or with row n's own weight for row n of x, shape (N, T, features)."""
    if row_weights is None:
        return nn.functional.linear(x, weight)
    if x.shape[0] != row_weights.shape[0]:
        # Cut into N parts, what all rows share would take each part from another row's copy.
        raise PrivacyError(
            f"an adapted module sees {x.shape[0]} inputs for {row_weights.shape[0]} examples, such "
            "as position embeddings that all of them share, so that no per-example gradient "
            "exists; choose other target_modules"
        )
    return torch.bmm(x.reshape(row_weights.shape[0], -1, x.shape[-1]), row_weights.mT).reshape(
        *x.shape[:-1], -1
    )


class Lora:
    """The adapter contract for LoRA."""

    name = "lora"

    def inject(self, model: nn.Module, config: AdapterConfig, seed: int) -> list[str]:
        """See `AdapterMethod.inject`."""
        names = match_targets(model, config.target_modules)
        shapes = {name: tuple(weight_of(linear_module(model, name)).shape) for name in names}
        for name, shape in shapes.items():
            if config.rank > min(shape):
                raise AdapterError(
                    f"rank {config.rank} is larger than module {name} allows: its weight is "
                    f"{shape[0]} x {shape[1]}, so the rank can be at most {min(shape)}"
                )
        model.requires_grad_(False)
        for name in names:
            base = linear_module(model, name)
            generator = torch.Generator().manual_seed(derive_seed(seed, "lora_a", name))
            lora_a = initial_lora_a(weight_of(base), config.rank, config.init, generator)
            model.set_submodule(name, LoraLinear(base, lora_a, config.scaling))
        return names

    def set_trainable(self, model: nn.Module, factors: Sequence[str]) -> None:
        """See `AdapterMethod.set_trainable`."""
        for module in _adapted(model).values():
            module.lora_a.requires_grad_(LORA_A in factors)
            module.lora_b.requires_grad_(LORA_B in factors)

    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        """See `AdapterMethod.tensors`."""
        return {
            name: parameter.detach().cpu().clone() for name, parameter in _factors(model).items()
        }

    def load(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """See `AdapterMethod.load`."""
        own = _factors(model)
        if own.keys() != tensors.keys():
            missing, unknown = own.keys() - tensors.keys(), tensors.keys() - own.keys()
            raise AdapterError(
                f"the adapter does not fit the model: {len(missing)} tensors are missing "
                f"{sorted(missing)[:3]}, {len(unknown)} are unknown {sorted(unknown)[:3]}"
            )
        for name, parameter in own.items():
            if parameter.shape != tensors[name].shape:
                raise AdapterError(
                    f"{name}: expected shape {tuple(parameter.shape)}, "
                    f"got {tuple(tensors[name].shape)}"
                )
            if not torch.isfinite(tensors[name]).all():
                raise AdapterError(f"{name} holds NaN or infinite values")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(tensors[name])

    def delta_norm(self, tensors: Mapping[str, Tensor], config: AdapterConfig) -> float:
        """See `AdapterMethod.delta_norm`; computed from r×r Gram matrices, never from B·A."""
        total = 0.0
        for lora_a_RI, lora_b_OR in lora_pairs(tensors).values():
            a, b = lora_a_RI.double(), lora_b_OR.double()
            total += float(((b.T @ b) * (a @ a.T)).sum().clamp(min=0))
        return config.scaling * math.sqrt(total)

    def merge(self, model: nn.Module) -> None:
        """See `AdapterMethod.merge`."""
        for name, module in _adapted(model).items():
            base = module.base
            update_OI = module.scaling * (module.lora_b.detach() @ module.lora_a.detach())
            merged_OI = weight_of(base) + update_OI.to(base.weight.dtype)
            # A new parameter: the old one may be another module's as well (tied embeddings).
            merged = merged_OI.T if is_transposed(base) else merged_OI
            base.weight = nn.Parameter(merged.contiguous(), requires_grad=False)
            model.set_submodule(name, base)

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
        """See `AdapterMethod.export_peft`."""
        from peft import LoraConfig

        modules = list(lora_pairs(tensors))
        write_peft(
            directory,
            {_to_peft(name, prefix): tensor for name, tensor in tensors.items()},
            LoraConfig(
                base_model_name_or_path=base_model,
                task_type=task_type,
                r=config.rank,
                lora_alpha=config.scaling * config.rank,
                target_modules=[_strip(name, prefix) for name in modules],
                fan_in_fan_out=any(is_transposed(_adapted(model)[name].base) for name in modules),
                inference_mode=True,
            ),
        )

    def import_peft(
        self, directory: Path, config: AdapterConfig, *, prefix: str
    ) -> dict[str, Tensor]:
        """See `AdapterMethod.import_peft`."""
        stored, tensors = read_peft(directory, "LORA")
        variants = sorted(key for key in _VARIANTS if stored.get(key) not in (None, False, {}))
        rank, alpha = stored.get("r"), stored.get("lora_alpha")
        if variants or stored.get("bias", "none") != "none":
            raise AdapterError(f"{directory} is no plain LoRA: it sets {variants or ['bias']}")
        fits = isinstance(alpha, int | float) and isclose(alpha, config.scaling * config.rank)
        if rank != config.rank or not fits:
            raise AdapterError(
                f"{directory} has r = {rank} and lora_alpha = {alpha}; expected rank "
                f"{config.rank} and alpha {config.scaling * config.rank:g}"
            )
        return {
            _from_peft(name, prefix, directory): tensor.float() for name, tensor in tensors.items()
        }


def lora_pairs(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Returns module name → (A of shape (R, I), B of shape (O, R)).

    Raises:
        AdapterError: If a factor lacks its partner or their ranks differ.
    """
    pairs = {}
    modules = [n.rpartition(".")[0] for n in tensors if n.endswith((f".{LORA_A}", f".{LORA_B}"))]
    for module in dict.fromkeys(modules):
        a, b = tensors.get(f"{module}.{LORA_A}"), tensors.get(f"{module}.{LORA_B}")
        if a is None or b is None or a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
            raise AdapterError(
                f"{module} needs lora_a of shape (r, d_in) and lora_b of shape (d_out, r), got "
                f"{None if a is None else tuple(a.shape)} and "
                f"{None if b is None else tuple(b.shape)}"
            )
        pairs[module] = (a, b)
    return pairs


def _adapted(model: nn.Module) -> dict[str, LoraLinear]:
    return {name: m for name, m in model.named_modules() if isinstance(m, LoraLinear)}


def _factors(model: nn.Module) -> dict[str, nn.Parameter]:
    return {
        f"{name}.{factor}": getattr(module, factor)
        for name, module in _adapted(model).items()
        for factor in (LORA_A, LORA_B)
    }


def _strip(name: str, prefix: str) -> str:
    return name.removeprefix(f"{prefix}.") if prefix else name


def _to_peft(name: str, prefix: str) -> str:
    module, _, factor = name.rpartition(".")
    return f"base_model.model.{_strip(module, prefix)}.{_PEFT_NAMES[factor]}"


def _from_peft(name: str, prefix: str, directory: Path) -> str:
    for factor, peft_name in _PEFT_NAMES.items():
        if name.startswith("base_model.model.") and name.endswith(f".{peft_name}"):
            module = name.removeprefix("base_model.model.").removesuffix(f".{peft_name}")
            return f"{prefix}.{module}.{factor}" if prefix else f"{module}.{factor}"
    raise AdapterError(f"{directory}: {name} is no LoRA factor")
