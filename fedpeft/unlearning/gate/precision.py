"""A model as it is served: in other arithmetic, or with rounded weights."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from fedpeft.models.tasks import CausalLanguageModel, Precision, SequenceClassifier
from fedpeft.unlearning.gate.config import ServedPrecision
from fedpeft.unlearning.metrics.rounded_weights import Bits, rounded_weights

_BITS: dict[ServedPrecision, Bits] = {"int8": 8, "int4": 4}


@contextmanager
def served_at(
    model: SequenceClassifier | CausalLanguageModel, precision: ServedPrecision
) -> Iterator[Precision]:
    """Lets a model compute at a precision for a while; its adapter must be merged.

    "bf16" rounds inputs and weights of every matrix product, "int8" and "int4" the weights of all
    linear modules (`metrics.rounded_weights`).

    Yields:
        What the task model's `logits` is to be called with.
    """
    if precision in _BITS:
        with rounded_weights(model, _BITS[precision]):
            yield "float32"
        return
    half = precision == "bf16"
    device = next(model.parameters()).device.type
    with torch.autocast(device, torch.bfloat16) if half else nullcontext():
        yield "bfloat16" if half else "float32"
