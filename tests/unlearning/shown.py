"""What models show of rows, made up: a gate's input without a model."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedpeft.unlearning.gate.config import GateConfig, ServedPrecision
from fedpeft.unlearning.gate.decide import decide
from fedpeft.unlearning.gate.measured import Relearning, Seen
from fedpeft.unlearning.gate.relearned import Relearned
from fedpeft.unlearning.gate.report import GateReport
from fedpeft.unlearning.gate.shown import Shown

NUM_FORGET, NUM_RETAIN, NUM_HELD_OUT = 20, 24, 30
KNOWN, UNKNOWN = 0.1, 4.0
"""Mean losses of rows that a model knows, and of rows that it never saw."""


def shown(
    *,
    forget: float = UNKNOWN,
    retain: float = KNOWN,
    held_out: float | None = UNKNOWN,
    seed: int = 0,
    **parts: Any,
) -> Shown:
    """What a causal model shows whose rows have these mean losses, with a little scatter."""
    random = np.random.default_rng(seed)
    means = {"forget": forget, "retain": retain, "held_out": held_out}
    sizes = {"forget": NUM_FORGET, "retain": NUM_RETAIN, "held_out": NUM_HELD_OUT}
    losses: dict[Any, Any] = {
        kind: mean * random.uniform(0.7, 1.3, sizes[kind])
        for kind, mean in means.items()
        if mean is not None
    }
    accuracy = {kind: np.exp(-values / 2) for kind, values in losses.items()}
    return Shown(
        **{
            "losses": losses,
            "accuracy": accuracy,
            "extraction": {k: accuracy[k] for k in ("forget", "held_out") if k in accuracy},
            "rouge": accuracy,
        }
        | parts
    )


def seen(after: Shown | None = None, **change: Any) -> Seen:
    """An affected version that knows the rows, a successor that does not, and their base."""
    return Seen(
        **{
            "before": shown(forget=KNOWN, seed=1),
            "after": after or shown(seed=2),
            "base": shown(retain=UNKNOWN, seed=3),
        }
        | change
    )


GOOD = Relearning(after=Relearned(steps=6, reached=True), level=Relearned(steps=8, reached=True))


def decided(
    by_precision: Mapping[ServedPrecision, Seen] | None = None,
    *,
    precisions: Sequence[ServedPrecision] | None = None,
    relearned: Relearning | None = GOOD,
    config: GateConfig | None = None,
    is_causal: bool = True,
    is_exact: bool = False,
    same_tensors: bool = False,
) -> GateReport:
    found = by_precision or {"fp32": seen(), "int4": seen()}
    return decide(
        found,
        relearned,
        config or GateConfig(),
        precisions=precisions or tuple(found),
        is_causal=is_causal,
        is_exact=is_exact,
        same_tensors=same_tensors,
    )
