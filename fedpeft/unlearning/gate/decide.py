"""From what the models show of the rows to a decision."""

from collections.abc import Mapping, Sequence

from fedpeft.unlearning.gate.config import GateConfig, ServedPrecision
from fedpeft.unlearning.gate.measured import Measured, Relearning, Seen, relearning
from fedpeft.unlearning.gate.report import GateReport, Measurement

_NO_REFERENCE = "comparison with an adapter that was retrained without the rows: there was none"


def decide(
    seen: Mapping[ServedPrecision, Seen],
    relearned: Relearning | None,
    config: GateConfig,
    *,
    precisions: Sequence[ServedPrecision],
    is_causal: bool,
    is_exact: bool,
    same_tensors: bool,
) -> GateReport:
    """Measures, compares with the thresholds, decides.

    Args:
        seen: By precision.
        relearned: In fp32; None where the affected version does not show the rows more than a
            model that never saw them.
        config: The thresholds.
        precisions: Those that are asked for; one that is not in `seen` fails.
        is_causal: Whether the model is a language model.
        is_exact: The method removes by construction. A measure of forgetting then fails only where
            its whole interval is beyond the bound: chance may not stop a retrained adapter.
        same_tensors: The successor is the affected version, which always fails.
    """
    found: dict[ServedPrecision, tuple[Measurement, ...]] = {}
    reasons = ["the successor is the affected version itself"] if same_tensors else []
    for precision in precisions:
        if precision not in seen:
            reasons.append(f"{precision}: was not measured")
            continue
        is_served = precision in config.served
        some = Measured(
            seen[precision], config, is_causal=is_causal, is_exact=is_exact, is_served=is_served
        )
        measurements = some.forgetting()
        if precision == precisions[0]:
            measurements.append(relearning(relearned, config))
        measurements += some.utility()
        found[precision] = tuple(measurements)
        reasons += [f"{precision}: {reason}" for reason in _reasons(measurements, is_served)]
    if not set(config.served) & found.keys():
        reasons.append(f"utility was measured at none of {', '.join(config.served)}, as served")
    sizes = {
        kind: len(losses) for each in seen.values() for kind, losses in each.after.losses.items()
    }
    return GateReport(
        passed=not reasons,
        reasons=tuple(reasons),
        reference=any(each.reference is not None for each in seen.values()),
        thresholds=config,
        precisions=found,
        not_measured=tuple(_not_measured(found, seen)),
        num_forget=sizes.get("forget", 0),
        num_retain=sizes.get("retain", 0),
        num_held_out=sizes.get("held_out", 0),
    )


def _reasons(measurements: Sequence[Measurement], is_served: bool) -> list[str]:
    """Why a precision does not pass; something must have been decided of each kind."""
    reasons = [_failure(found) for found in measurements if found.passed is False]
    asked = {"forgetting": "whether the rows are forgotten"}
    if is_served:
        asked["utility"] = "utility"
    for kind, what in asked.items():
        if not any(found.kind == kind and found.passed is not None for found in measurements):
            reasons.append(f"{what} could not be decided: nothing was measured that has a bound")
    return reasons


def _failure(found: Measurement) -> str:
    if found.after is None:
        return f"{found.name} is not a finite number"
    bound, word = (
        (found.at_most, "at most") if found.at_most is not None else (found.at_least, "at least")
    )
    if bound is None:
        return f"{found.name} is {found.after.value:.4g}, and there is no bound to hold it against"
    return f"{found.name} is {found.after.value:.4g}, {word} {bound:.4g} passes"


def _not_measured(
    found: Mapping[ServedPrecision, Sequence[Measurement]], seen: Mapping[ServedPrecision, Seen]
) -> list[str]:
    lines = {
        f"{m.name}: {m.note}": None for some in found.values() for m in some if m.after is None
    }
    without = [] if any(each.reference for each in seen.values()) else [_NO_REFERENCE]
    return [*lines, *without]
