"""Many adapters on one base model: each row of a batch is answered with its own.

Every row takes its A and B along (S-LoRA, Sheng et al., 2023): rows of different adapters, of
different ranks as well, are one batch of one forward pass.

Legend: N rows, R rank, I inputs, O outputs, C classes, H hidden features.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from fedpeft.adapters.linear import is_linear, linear_module, weight_of
from fedpeft.adapters.lora import LORA_A, LORA_B, LoraLinear
from fedpeft.errors import AdapterError
from fedpeft.models.tasks import ClassifierHead
from fedpeft.serving.adapter_files import AdapterFiles, Head

_Factors = Mapping[str, tuple[Tensor, Tensor]]


class AdapterBank:
    """Adapters in memory. One thread uses it, the one that runs the model."""

    def __init__(self, base: nn.Module, head: ClassifierHead | None = None) -> None:
        """Takes a base model without adapters, and the head of a classifier.

        The base model's linear modules are wrapped as adapters ask for it.
        """
        self._base = base
        self._head = head
        self._device = next(base.parameters()).device
        self._modules: dict[str, LoraLinear] = {}
        self._factors: dict[str, _Factors] = {}
        self._heads: dict[str, Head] = {}
        self._rows: tuple[str, ...] | None = None

    @property
    def digests(self) -> frozenset[str]:
        """Of the adapters that are here."""
        return frozenset(self._factors)

    def check(self, files: AdapterFiles) -> None:
        """Returns if the adapter fits the base model.

        Raises:
            AdapterError: If a module or shape is not that of the base model, or the task is
                another.
        """
        if (files.head is None) != (self._head is None):
            raise AdapterError(
                f"adapter {files.digest[:12]} is for {files.task}; this base model was loaded for "
                "another task"
            )
        if files.head is not None and self._head is not None:
            features = self._head.weight.shape[1]
            if files.head.weight_CH.shape[1] != features:
                raise AdapterError(
                    f"the head takes {files.head.weight_CH.shape[1]} features, the base model has "
                    f"{features}"
                )
        for name, (a_RI, b_OR) in files.factors.items():
            shape = self._shape(name)
            if (b_OR.shape[0], a_RI.shape[1]) != shape:
                raise AdapterError(
                    f"{name}: the adapter is for a weight of {b_OR.shape[0]} x {a_RI.shape[1]}, "
                    f"the base model's is {shape[0]} x {shape[1]}"
                )

    def add(self, files: AdapterFiles) -> None:
        """Makes an adapter ready to answer; one that is here already stays.

        Raises:
            AdapterError: If it does not fit; nothing has changed then.
        """
        if files.digest in self._factors:
            return
        self.check(files)
        self._wrap(files.factors)
        # Contiguous copies of our own: what was read may be mapped from a file.
        self._factors[files.digest] = {
            name: (self._own(a_RI), self._own(b_OR)) for name, (a_RI, b_OR) in files.factors.items()
        }
        if files.head is not None:
            self._heads[files.digest] = Head(
                weight_CH=self._own(files.head.weight_CH), bias_C=self._own(files.head.bias_C)
            )

    def remove(self, digest: str) -> None:
        """Forgets an adapter; no row may ask for it any more."""
        self._factors.pop(digest, None)
        self._heads.pop(digest, None)
        self._rows = None

    def num_classes(self, digest: str) -> int:
        """Returns how many classes a classifier's adapter knows."""
        return len(self._heads[digest].bias_C)

    @contextmanager
    def rows(self, digests: Sequence[str]) -> Iterator[None]:
        """In this block, row n of a batch goes through adapter `digests[n]`.

        The logits of a classifier are as wide as the widest head among the rows; where a row's own
        head is narrower, the rest is minus infinity.

        Raises:
            AdapterError: If an adapter is not here.
        """
        wanted = tuple(digests)
        if wanted != self._rows:
            missing = set(wanted) - self._factors.keys()
            if missing:
                raise AdapterError(f"adapter {min(missing)} is not loaded")
            self._rows = None
            distinct = _uniform(wanted)
            self._assign([self._factors[digest] for digest in distinct])
            if self._head is not None:
                self._assign_heads(self._head, [self._heads[digest] for digest in distinct])
            self._rows = wanted
        yield

    @contextmanager
    def alone(self, files: AdapterFiles) -> Iterator[None]:
        """In this block, every row goes through an adapter as its files have it.

        Nothing that `add` keeps is used: this is what `rows` is compared with.
        """
        self.check(files)
        self._rows = None
        factors = {
            name: (a_RI.to(self._device), b_OR.to(self._device))
            for name, (a_RI, b_OR) in files.factors.items()
        }
        self._wrap(factors)
        self._assign([factors])
        if self._head is not None and files.head is not None:
            weight_CH, bias_C = files.head.weight_CH, files.head.bias_C
            own = Head(weight_CH=weight_CH.to(self._device), bias_C=bias_C.to(self._device))
            self._assign_heads(self._head, [own])
        yield

    def _wrap(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self._modules:
                base = linear_module(self._base, name)
                nothing = torch.zeros(1, weight_of(base).shape[1])
                self._modules[name] = LoraLinear(base, nothing, scaling=1.0)
                self._base.set_submodule(name, self._modules[name])

    def _assign(self, rows: Sequence[_Factors]) -> None:
        """One entry: of all rows; otherwise one a row."""
        for name, module in self._modules.items():
            pairs = [factors.get(name) for factors in rows]
            if len(pairs) == 1:
                a_RI, b_OR = pairs[0] or self._nothing(module)
                module.lora_a.data, module.lora_b.data = a_RI, b_OR
                module.row_parameters = None
                continue
            rank = max((pair[0].shape[0] for pair in pairs if pair), default=1)
            full = [pair or self._nothing(module) for pair in pairs]
            module.row_parameters = {
                LORA_A: torch.stack([pad(a, (0, 0, 0, rank - a.shape[0])) for a, _ in full]),
                LORA_B: torch.stack([pad(b, (0, rank - b.shape[1])) for _, b in full]),
            }

    def _assign_heads(self, head: ClassifierHead, rows: Sequence[Head]) -> None:
        """One entry: of all rows; otherwise one a row."""
        if len(rows) == 1:
            head.weight.data, head.bias.data = rows[0].weight_CH, rows[0].bias_C
            head.row_parameters = None
            return
        most = max(len(row.bias_C) for row in rows)
        extra = [most - len(row.bias_C) for row in rows]
        head.row_parameters = {
            "weight": torch.stack(
                [pad(row.weight_CH, (0, 0, 0, n)) for row, n in zip(rows, extra, strict=True)]
            ),
            "bias": torch.stack(
                [
                    pad(row.bias_C, (0, n), value=-torch.inf)
                    for row, n in zip(rows, extra, strict=True)
                ]
            ),
        }

    def _nothing(self, module: LoraLinear) -> tuple[Tensor, Tensor]:
        num_outputs, num_inputs = weight_of(module.base).shape
        return (
            torch.zeros(1, num_inputs, device=self._device),
            torch.zeros(num_outputs, 1, device=self._device),
        )

    def _shape(self, name: str) -> tuple[int, int]:
        try:
            module = self._base.get_submodule(name)
        except AttributeError as error:
            raise AdapterError(f"the base model has no module {name}") from error
        base = module.base if isinstance(module, LoraLinear) else module
        if not is_linear(base):
            raise AdapterError(f"module {name} of the base model is not linear")
        num_outputs, num_inputs = weight_of(base).shape
        return num_outputs, num_inputs

    def _own(self, tensor: Tensor) -> Tensor:
        return tensor.detach().to(self._device, torch.float32, copy=True).contiguous()


def _uniform(rows: tuple[str, ...]) -> tuple[str, ...]:
    return rows[:1] if len(set(rows)) == 1 else rows
