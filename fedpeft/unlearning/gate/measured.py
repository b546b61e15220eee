"""Every measure at one precision, beside its bound.

A measure of forgetting is held against the level of a model that never saw the rows. With a
retrained reference that is the reference. Without one it is the higher of two: what the base model
shows of the rows, and what the affected version shows of rows that nobody trained on.
"""

from dataclasses import dataclass

import numpy as np

from fedpeft.unlearning.gate.config import GateConfig
from fedpeft.unlearning.gate.estimate import harmonic_mean, mean, membership
from fedpeft.unlearning.gate.names import (
    ACCURACY,
    CHANGE,
    CONFIDENCE,
    EXTRACTION,
    FORGET_QUALITY,
    HELD_OUT_ACCURACY,
    KEPT_ACCURACY,
    KEPT_LOSS,
    MEMBERSHIP,
    RELEARNING,
    ROUGE,
    TRUTH_RATIO,
    UTILITY,
    WORST,
)
from fedpeft.unlearning.gate.relearned import Relearned
from fedpeft.unlearning.gate.report import Estimate, Measurement
from fedpeft.unlearning.gate.shown import Shown, Values
from fedpeft.unlearning.metrics.truth_ratio import forget_quality

_BY_CHANCE = "beyond its bound by no more than chance allows"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the models show at one precision.

    Attributes:
        before: The affected version.
        after: The successor.
        base: The base model without an adapter, in fp32.
        reference: A model that was retrained without the rows, where there is one.
    """

    before: Shown
    after: Shown
    base: Shown
    reference: Shown | None = None


@dataclass(frozen=True, kw_only=True)
class Relearning:
    """Steps that bring the rows back, in the successor and in a model that never saw them.

    Attributes:
        after: Of the successor.
        level: Of the reference on these rows, or of the successor on held-out ones; None where
            there is neither.
    """

    after: Relearned
    level: Relearned | None


class Measured:
    """The measures at one precision."""

    def __init__(
        self,
        seen: Seen,
        config: GateConfig,
        *,
        is_causal: bool,
        is_exact: bool,
        is_served: bool,
    ) -> None:
        self._seen, self._config = seen, config
        self._is_causal, self._is_exact, self._is_served = is_causal, is_exact, is_served
        self._never = seen.reference
        self._level_of = (
            "a model retrained without the rows"
            if seen.reference is not None
            else "the base model, or the affected version on held-out rows, whichever is higher"
        )

    def forgetting(self) -> list[Measurement]:
        """Returns what is shown of the rows to be forgotten."""
        before, after = self._seen.before, self._seen.after
        change = np.abs(after.losses["forget"] - before.losses["forget"])
        config = self._config
        found = [
            bounded(
                CHANGE, "change", self._mean(change), at_least=config.min_change, note="in nats"
            )
        ]
        if self._is_causal:
            found.append(self._shown(ACCURACY, "accuracy"))
            if len(after.extraction.get("forget", ())):
                found.append(self._shown(EXTRACTION, "extraction"))
                found.append(self._worst())
            if "forget" in after.rouge:
                found.append(self._shown(ROUGE, "rouge", scatters=True))
            if "forget" in after.truth:
                found.append(self._truth())
        else:
            found.append(self._shown(CONFIDENCE, "confidence"))
        found.append(self._membership())
        return found

    def utility(self) -> list[Measurement]:
        """Returns how well the other rows are answered."""
        before, after, config = self._seen.before, self._seen.after, self._config
        found = []
        if "retain" in after.losses:
            now, then = (self._mean(shown.accuracy["retain"]) for shown in (after, before))
            found.append(self._kept(KEPT_ACCURACY, now, then, config.max_utility_loss))
            now, then = (self._mean(shown.losses["retain"]) for shown in (after, before))
            found.append(self._kept(KEPT_LOSS, now, then))
            if self._is_causal:
                (now, parts), (then, _) = self._utility(after), self._utility(before)
                note = f"of TOFU's nine parts these, on rows that stay: {', '.join(parts)}"
                most_lost = config.max_model_utility_loss
                found.append(self._kept(UTILITY, now, then, most_lost, note=note))
        if "held_out" in after.losses:
            now, then = (self._mean(shown.accuracy["held_out"]) for shown in (after, before))
            found.append(self._kept(HELD_OUT_ACCURACY, now, then))
        return found

    def _kept(
        self,
        name: str,
        after: Estimate | None,
        before: Estimate | None,
        most_lost: float | None = None,
        *,
        note: str = "",
    ) -> Measurement:
        """A measure of utility; bounded where the adapter is served at this precision."""
        if most_lost is None:
            return reported(name, "utility", after, before=before, note=note)
        if not self._is_served:
            note = f"{note}; " if note else ""
            note += "no bound: it is not served at this precision"
            return reported(name, "utility", after, before=before, note=note)
        at_least = None if before is None else (1 - most_lost) * before.value
        measured = bounded(name, "utility", after, before=before, at_least=at_least, note=note)
        high = after.high if after is not None and name == UTILITY else None
        if (
            measured.passed is False
            and high is not None
            and at_least is not None
            and high >= at_least
        ):
            return measured.model_copy(
                update={"passed": True, "note": "; ".join(filter(None, [note, _BY_CHANCE]))}
            )
        return measured

    def _shown(self, name: str, value: str, *, scatters: bool = False) -> Measurement:
        """A measure of which a model that never saw the rows shows a certain level."""
        return self._at_most(
            name,
            self._mean(getattr(self._seen.after, value)["forget"]),
            self._mean(getattr(self._seen.before, value)["forget"]),
            self._level(value),
            self._config.tolerance,
            scatters=scatters,
        )

    def _worst(self) -> Measurement:
        """A mean hides one row that is given away whole."""
        seen = self._seen
        sources = [seen.base, seen.before] if self._never is None else [self._never]
        others = [
            values
            for source in sources
            for kind, values in source.extraction.items()
            if not (source is seen.before and kind == "forget") and len(values)
        ]
        level = None if not others else Estimate(value=max(float(v.max()) for v in others))
        after, before = (
            Estimate(value=float(shown.extraction["forget"].max()))
            for shown in (seen.after, seen.before)
        )
        measured = self._at_most(WORST, after, before, level, self._config.tolerance)
        if self._is_exact and measured.passed is False:
            return measured.model_copy(update={"passed": None, "note": "no bound: it is exact"})
        return measured

    def _level(self, value: str) -> Estimate | None:
        if self._never is not None:
            return self._mean(getattr(self._never, value)["forget"])
        levels = [self._mean(getattr(self._seen.base, value)["forget"])]
        outside = getattr(self._seen.before, value).get("held_out", ())
        if len(outside):
            levels.append(self._mean(outside))
        known = [level for level in levels if level is not None]
        return max(known, key=lambda level: level.value, default=None)

    def _membership(self) -> Measurement:
        seen = self._seen
        if not all("held_out" in shown.losses for shown in (seen.before, seen.after, seen.base)):
            return reported(
                MEMBERSHIP,
                "forgetting",
                None,
                note="there are no held-out rows of the same kind to tell the rows from",
            )
        level = Estimate(value=0.5)
        if self._never is not None:
            of_reference = self._auc(self._never)
            level = level if of_reference is None or of_reference.value < 0.5 else of_reference
        measured = self._at_most(
            MEMBERSHIP,
            self._auc(seen.after),
            self._auc(seen.before),
            level,
            self._config.membership_tolerance,
            scatters=True,
        )
        update = {} if self._never is not None else {"level_of": "chance"}
        return measured.model_copy(update=update)

    def _auc(self, shown: Shown) -> Estimate | None:
        """A row's score is how far the adapter lowered its loss."""
        base = self._seen.base.losses
        return membership(
            base["forget"] - shown.losses["forget"],
            base["held_out"] - shown.losses["held_out"],
            self._config.confidence,
        )

    def _truth(self) -> Measurement:
        """TOFU's forget quality with a reference; without one, the ratios stand for themselves."""
        after, before = self._seen.after.truth["forget"], self._seen.before.truth["forget"]
        if self._never is None or "forget" not in self._never.truth:
            return reported(
                TRUTH_RATIO,
                "forgetting",
                self._mean(after),
                before=self._mean(before),
                note="forget quality needs a retrained reference",
            )
        reference = self._never.truth["forget"]
        return bounded(
            FORGET_QUALITY,
            "forgetting",
            Estimate(value=forget_quality(after, reference)),
            before=Estimate(value=forget_quality(before, reference)),
            at_least=self._config.min_forget_quality,
            note="p-value of Kolmogorov and Smirnov's test of truth ratios against the reference",
        )

    def _utility(self, shown: Shown) -> tuple[Estimate | None, list[str]]:
        parts = {"probability": shown.confidence["retain"]}
        if "retain" in shown.rouge:
            parts["ROUGE-L recall"] = shown.rouge["retain"]
        if "retain" in shown.truth:
            parts["truth ratio"] = np.maximum(0.0, 1.0 - shown.truth["retain"])
        if not all(np.isfinite(part).all() for part in parts.values()):
            return None, list(parts)
        return harmonic_mean(list(parts.values()), self._config.confidence), list(parts)

    def _at_most(
        self,
        name: str,
        after: Estimate | None,
        before: Estimate | None,
        level: Estimate | None,
        tolerance: float,
        *,
        scatters: bool = False,
    ) -> Measurement:
        bound = None
        if before is not None and level is not None:
            above = max(0.0, before.value - level.value)
            bound = level.value + max(tolerance, self._config.max_remaining * above)
        measured = bounded(
            name,
            "forgetting",
            after,
            before=before,
            level=level,
            level_of=self._level_of,
            at_most=bound,
        )
        if measured.passed is not False or bound is None or after is None or level is None:
            return measured
        if self._is_exact:
            by_chance = after.low is not None and after.low <= bound
        else:
            by_chance = scatters and after.low is not None and after.low <= level.value
        if by_chance:
            return measured.model_copy(update={"passed": True, "note": _BY_CHANCE})
        return measured

    def _mean(self, values_N: Values) -> Estimate | None:
        if not len(values_N) or not np.isfinite(values_N).all():
            return None
        return mean(values_N, self._config.confidence)


def relearning(found: Relearning | None, config: GateConfig) -> Measurement:
    """Returns the measure of how soon the rows are back."""
    if found is None:
        return reported(
            RELEARNING,
            "forgetting",
            None,
            note="the affected version does not know the rows better than a model that never saw "
            "them, or the held-out rows were trained on after all",
        )
    note = "in fp32"
    if not found.after.reached:
        note = f"in fp32; not learned again in {config.relearning_steps} steps"
    if found.level is None:
        return reported(
            RELEARNING,
            "forgetting",
            Estimate(value=found.after.steps),
            note=f"{note}; no bound without held-out rows or a reference",
        )
    return bounded(
        RELEARNING,
        "forgetting",
        Estimate(value=found.after.steps),
        level=Estimate(value=found.level.steps),
        level_of="a retrained model on the rows, or the successor on held-out rows",
        at_least=config.min_relearning * found.level.steps,
        note=note,
    )


def bounded(
    name: str,
    kind: str,
    after: Estimate | None,
    *,
    before: Estimate | None = None,
    level: Estimate | None = None,
    level_of: str = "",
    at_most: float | None = None,
    at_least: float | None = None,
    note: str = "",
) -> Measurement:
    """A measurement with a verdict; what is not a number fails."""
    passed = after is not None and (at_most is not None or at_least is not None)
    if after is not None and at_most is not None:
        passed = after.value <= at_most
    if after is not None and at_least is not None:
        passed = after.value >= at_least
    return Measurement.model_validate(
        {
            "name": name,
            "kind": kind,
            "after": after,
            "before": before,
            "level": level,
            "level_of": level_of if level is not None else "",
            "at_most": at_most,
            "at_least": at_least,
            "passed": passed,
            "note": note if after is not None else "not a finite number",
        }
    )


def reported(
    name: str,
    kind: str,
    after: Estimate | None,
    *,
    before: Estimate | None = None,
    note: str = "",
) -> Measurement:
    """A measurement without a bound, or one that could not be taken."""
    return Measurement.model_validate(
        {"name": name, "kind": kind, "after": after, "before": before, "passed": None, "note": note}
    )
