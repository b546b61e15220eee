"""Looks at the affected version, the successor and their base, and decides."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from fedpeft.adapters.config import AdapterConfig
from fedpeft.federated.adapted_model import AdaptedModel
from fedpeft.models.dataset import Dataset
from fedpeft.models.model_config import ModelConfig
from fedpeft.types import derive_seed, tensor_digest
from fedpeft.unlearning.gate.config import ServedPrecision
from fedpeft.unlearning.gate.decide import decide
from fedpeft.unlearning.gate.measured import Relearning, Seen
from fedpeft.unlearning.gate.relearned import Relearned, relearned
from fedpeft.unlearning.gate.report import GateReport
from fedpeft.unlearning.gate.rows import Kept
from fedpeft.unlearning.gate.shown import Look, Shown

_LEAST_TO_RELEARN = 0.1
"""Nats between knowing rows and never having seen them, below which relearning tells nothing."""
_KNOWN = 0.25
"""Rows count as learned again once their loss has come this near to what it was."""


@dataclass(frozen=True, kw_only=True)
class Version:
    """An adapter that is looked at."""

    adapter: AdapterConfig
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Verification:
    """All that the gate needs.

    Attributes:
        load_base: Loads the base model anew.
        model: Its configuration.
        num_classes: Of a classifier; 0 for a language model.
        affected: The version that knows the rows.
        successor: The version that should not.
        reference: One that was retrained without the rows, where there is one.
        look: Rows, tokenizer and thresholds.
        precisions: At which it is served.
        is_exact: See `decide`.
        seed: Of relearning.
    """

    load_base: Callable[[], nn.Module]
    model: ModelConfig
    num_classes: int
    affected: Version
    successor: Version
    reference: Version | None
    look: Look
    precisions: Sequence[ServedPrecision]
    is_exact: bool
    seed: int


def verify(
    verification: Verification, told: Callable[[float], None] = lambda share: None
) -> GateReport:
    """Measures and decides.

    Args:
        verification: What is looked at, and how.
        told: Hears the share that is done.

    Raises:
        AdapterError: If an adapter does not fit the model.
        DataError: If a loss is not finite where truth ratios are taken.
    """
    do = _Looking(verification, told)
    before = do.look(verification.affected, extracted=("forget", "held_out"))
    after = do.look(verification.successor, extracted=("forget",))
    base = do.base()
    reference = verification.reference
    never = None if reference is None else do.look(reference, extracted=("forget",))
    seen = {
        precision: Seen(
            before=before[precision],
            after=after[precision],
            base=base,
            reference=None if never is None else never[precision],
        )
        for precision in verification.precisions
    }
    return decide(
        seen,
        do.relearning(next(iter(seen.values()))),
        verification.look.config,
        precisions=verification.precisions,
        is_causal=verification.num_classes == 0,
        is_exact=verification.is_exact,
        same_tensors=tensor_digest(verification.affected.tensors)
        == tensor_digest(verification.successor.tensors),
    )


class _Looking:
    """One model at a time, at every precision."""

    def __init__(self, verification: Verification, told: Callable[[float], None]) -> None:
        self._of, self._told, self._done = verification, told, 0
        num_versions = 2 if verification.reference is None else 3
        self._total = len(verification.precisions) * num_versions + 2

    def look(self, version: Version, extracted: Sequence[Kept]) -> dict[ServedPrecision, Shown]:
        """What a version shows, at each precision."""
        model = self._opened(version)
        model.method.merge(model.task_model)
        shown = {}
        for precision in self._of.precisions:
            shown[precision] = self._of.look.at(
                model.task_model,
                precision,
                kinds=("forget", "retain", "held_out"),
                extracted=extracted,
                answered=("retain",),
            )
            self._advance()
        return shown

    def base(self) -> Shown:
        """What the base model shows, in fp32: it is a level, and nobody serves it."""
        model = self._opened(None)
        model.method.merge(model.task_model)
        shown = self._of.look.at(
            model.task_model, "fp32", kinds=("forget", "held_out"), extracted=("forget",)
        )
        self._advance()
        return shown

    def relearning(self, seen: Seen) -> Relearning | None:
        """Steps that bring the rows back; in fp32, from what was seen at the first precision."""
        sets = self._of.look.rows.sets
        known = float(np.mean(seen.before.losses["forget"]))
        never = seen.reference or seen.base
        unknown = float(np.mean(never.losses["forget"]))
        if seen.reference is None and "held_out" in seen.before.losses:
            unknown = float(np.mean(seen.before.losses["held_out"]))
        if not unknown - known >= _LEAST_TO_RELEARN:
            return None
        target = known + _KNOWN * (unknown - known)
        forget = sets["forget"]
        level: Relearned | None = None
        if self._of.reference is not None:
            level = self._relearned(self._of.reference, forget, target)
        elif "held_out" in sets:
            outside = sets["held_out"]
            few = outside.take(range(min(len(outside), len(forget))))
            level = self._relearned(self._of.successor, few, target)
        found = Relearning(after=self._relearned(self._of.successor, forget, target), level=level)
        self._advance()
        return found

    def _relearned(self, version: Version, rows: Dataset, target: float) -> Relearned:
        return relearned(
            self._opened(version),
            rows,
            target,
            self._of.look.config,
            max_tokens=self._of.look.max_tokens,
            seed=derive_seed(self._of.seed, "relearning"),
        )

    def _opened(self, version: Version | None) -> AdaptedModel:
        of = self._of
        adapter = of.affected.adapter if version is None else version.adapter
        model = AdaptedModel(
            of.load_base(), of.model, adapter, num_classes=of.num_classes, seed=of.seed
        )
        if version is not None:
            model.load(version.tensors)
        return model

    def _advance(self) -> None:
        self._done += 1
        self._told(min(1.0, self._done / self._total))
