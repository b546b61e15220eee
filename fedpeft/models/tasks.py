"""What a base model is trained for: a loss a row, and the metrics of a held-out set.

Legend: N rows, T tokens, H hidden features, C classes, V vocabulary.
"""

import math
from inspect import signature
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedpeft.errors import DataError
from fedpeft.models.dataset import Batch

Precision = Literal["float32", "bfloat16"]

BASE = "base"
HEAD = "head"


class TaskModel(Protocol):
    """A base model with a task. Adapter names begin with 'base', head names with 'head'.

    It may be trained in bfloat16; it is scored in float32, so that a score says what the exported
    adapter does.
    """

    base: nn.Module

    def logits(self, batch: Batch, precision: Precision = "float32") -> Tensor:
        """Returns logits, shape (N, C) or (N, T, V)."""

    def losses(self, batch: Batch) -> Tensor:
        """Returns the loss of each row, shape (N,)."""

    def score(self, batch: Batch) -> "Score":
        """Returns what the batch adds to the held-out metrics."""


class Score:
    """Sums over a held-out set, from which the metrics follow."""

    def __init__(self, *, loss: float = 0.0, correct: int = 0, count: int = 0) -> None:
        """Takes sums over `count` rows (classification) or tokens (causal LM)."""
        self.loss, self.correct, self.count = loss, correct, count

    def __add__(self, other: "Score") -> "Score":
        return Score(
            loss=self.loss + other.loss,
            correct=self.correct + other.correct,
            count=self.count + other.count,
        )


class _Run:
    """Runs the base model; in bfloat16 its matrix products and attention are rounded."""

    def __init__(self, base: nn.Module) -> None:
        # No token is generated. Gradient checkpointing would put each key into a cache twice.
        cached = "use_cache" in signature(base.forward).parameters
        self._options = {"use_cache": False} if cached else {}

    def __call__(self, base: nn.Module, batch: Batch, precision: Precision) -> Any:
        device, is_half = batch.input_ids_NT.device.type, precision == "bfloat16"
        with torch.autocast(device, torch.bfloat16, enabled=is_half):
            return base(
                input_ids=batch.input_ids_NT,
                attention_mask=batch.attention_mask_NT,
                **self._options,
            )


class ClassifierHead(nn.Linear):
    """A linear head whose parameters may be given per row."""

    def __init__(self, num_features: int, num_classes: int) -> None:
        """Starts at zero: no class is preferred before any data was seen."""
        super().__init__(num_features, num_classes)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)
        self.row_parameters: dict[str, Tensor] | None = None

    def freeze_random(self, generator: torch.Generator) -> None:
        """Sets random orthonormal rows (columns where C > H) and stops training."""
        num_classes, num_features = self.weight.shape
        tall = torch.randn(
            max(num_classes, num_features), min(num_classes, num_features), generator=generator
        )
        q = torch.linalg.qr(tall).Q
        with torch.no_grad():
            self.weight.copy_(q if num_classes > num_features else q.T)
        self.requires_grad_(False)

    def forward(self, pooled_NH: Tensor) -> Tensor:
        """Returns logits, shape (N, C)."""
        if self.row_parameters is None:
            return super().forward(pooled_NH)
        weight_NCH, bias_NC = self.row_parameters["weight"], self.row_parameters["bias"]
        return torch.baddbmm(bias_NC.unsqueeze(2), weight_NCH, pooled_NH.unsqueeze(2)).squeeze(2)


class SequenceClassifier(nn.Module):
    """Mean over the last hidden states of the real tokens, then a linear head."""

    def __init__(
        self, base: nn.Module, num_classes: int, *, precision: Precision = "float32"
    ) -> None:
        """Takes an encoder whose configuration has a hidden_size."""
        super().__init__()
        self.base = base
        self._run = _Run(base)
        self._precision: Precision = precision
        features: int = base.config.hidden_size  # type: ignore[union-attr, assignment]
        self.head = ClassifierHead(features, num_classes)

    def logits(self, batch: Batch, precision: Precision = "float32") -> Tensor:
        """Returns logits, shape (N, C)."""
        out = self._run(self.base, batch, precision)
        hidden_NTH = out.last_hidden_state.to(self.head.weight.dtype)
        mask_NT1 = batch.attention_mask_NT.unsqueeze(2).to(hidden_NTH.dtype)
        logits: Tensor = self.head((hidden_NTH * mask_NT1).sum(1) / mask_NT1.sum(1))
        return logits

    def losses(self, batch: Batch) -> Tensor:
        """Returns the cross-entropy of each row, shape (N,)."""
        logits_NC = self.logits(batch, self._precision)
        return functional.cross_entropy(logits_NC, batch.targets_N, reduction="none")

    def score(self, batch: Batch) -> Score:
        """Counts rows."""
        logits_NC = self.logits(batch)
        loss = functional.cross_entropy(logits_NC, batch.targets_N, reduction="sum")
        correct = (logits_NC.argmax(1) == batch.targets_N).sum()
        return Score(loss=float(loss), correct=int(correct), count=batch.num_rows)


class CausalLanguageModel(nn.Module):
    """Next-token prediction on the tokens that carry loss."""

    def __init__(self, base: nn.Module, *, precision: Precision = "float32") -> None:
        """Takes a model with a language-model head."""
        super().__init__()
        self.base = base
        self._run = _Run(base)
        self._precision: Precision = precision

    def logits(self, batch: Batch, precision: Precision = "float32") -> Tensor:
        """Returns logits, shape (N, T, V): at each token those of the next one."""
        logits_NTV: Tensor = self._run(self.base, batch, precision).logits
        return logits_NTV

    def _token_losses(self, batch: Batch, precision: Precision) -> tuple[Tensor, Tensor, Tensor]:
        logits_NTV = self.logits(batch, precision)[:, :-1]
        labels_NT = batch.labels_NT()[:, 1:]
        losses_NT = functional.cross_entropy(
            logits_NTV.flatten(0, 1).float(), labels_NT.flatten(), reduction="none"
        ).view_as(labels_NT)
        return logits_NTV, labels_NT, losses_NT

    def losses(self, batch: Batch) -> Tensor:
        """Returns the mean loss over each row's own tokens, shape (N,); 0 where it has none."""
        _, labels_NT, losses_NT = self._token_losses(batch, self._precision)
        return losses_NT.sum(1) / (labels_NT >= 0).sum(1).clamp(min=1)

    def score(self, batch: Batch) -> Score:
        """Counts tokens."""
        logits_NTV, labels_NT, losses_NT = self._token_losses(batch, "float32")
        correct = (logits_NTV.argmax(2) == labels_NT).sum()
        counted = (labels_NT >= 0).sum()
        return Score(loss=float(losses_NT.sum()), correct=int(correct), count=int(counted))


def metrics(score: Score, task: Literal["classification", "causal-lm"]) -> dict[str, float]:
    """Returns loss and accuracy, or loss, perplexity and token accuracy.

    Raises:
        DataError: If there was nothing to count.
    """
    if score.count == 0:
        raise DataError("the held-out set has nothing to score: no row, or no token to predict")
    loss, accuracy = score.loss / score.count, score.correct / score.count
    if task == "classification":
        return {"loss": loss, "accuracy": accuracy}
    return {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "token_accuracy": accuracy}
