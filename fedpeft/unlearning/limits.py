"""What a receipt does not show, in plain words."""

from typing import Literal

from fedpeft.unlearning.gate.names import MEMBERSHIP, RELEARNING
from fedpeft.unlearning.gate.report import GateReport, Measurement
from fedpeft.unlearning.plan import Claim, Guarantee


def limits_of(
    *,
    claim: Claim,
    guarantee: Guarantee,
    measured_by: Literal["server", "client", "nobody"],
    gate: GateReport | None,
) -> tuple[str, ...]:
    """Returns the limits of a removal, the weightiest first."""
    return (
        _claim(claim, guarantee),
        *_measuring(claim, measured_by, gate),
        *(() if gate is None else _figures(gate, guarantee)),
        *_guarantee(claim, guarantee),
        *_REACH,
    )


_REACH = (
    "Only this federation is reached. Copies of a withdrawn version that left it stay what they "
    "are: exports, files that were handed to another server such as vLLM, backups, downloads; so "
    "do answers that were given.",
    "The withdrawn versions stay in the registry's store, for operators and auditors, so that the "
    "log can be checked; they are not served and not trained on.",
    "The base model is not changed. What it may have of the records from its own training stays.",
    "The same facts in records of other clients, or in records that stay, are not forgotten.",
)


def _claim(claim: Claim, guarantee: Guarantee) -> str:
    if claim == "exact":
        return (
            "Exact means that the successor was trained without the records. That rests on each "
            "client leaving removed records out on its own machine, which nobody else can see."
        )
    if guarantee == "charged":
        return (
            "The removal is approximate: the adapter was changed by steps with noise, and nothing "
            "says how much of the records they took away. What stands for the records is epsilon: "
            "it bounds how much better anybody can tell from all versions together, this one "
            "included, that a record was ever in them."
        )
    return (
        "The removal is approximate: the adapter was changed until the measures no longer find the "
        "records. That is no proof that nothing of them is left; another attack may find more."
    )


def _measuring(claim: Claim, measured_by: str, gate: GateReport | None) -> list[str]:
    if gate is None and claim == "approximate":
        return [
            "No figure is stated: each would be computed from the records without noise, and say "
            "what no epsilon covers. The client may have measured on its own machine."
        ]
    if gate is None:
        return [
            "Nobody measured the successor: the records are with the client, and the claim rests "
            "on how it was made."
        ]
    lines = []
    if measured_by == "client":
        lines.append(
            "The client ran the job and measured the result itself, since the records did not "
            "leave it. The server checked the adapter's form, and not these figures."
        )
    lines += [f"Not measured: {line}" for line in gate.not_measured]
    return lines


def _figures(gate: GateReport, guarantee: str) -> list[str]:
    lines = [
        f"The figures are of {gate.num_forget} records to be forgotten, {gate.num_retain} that "
        f"stay and {gate.num_held_out} that nobody trained on; with few records the intervals are "
        "wide, and they say nothing of records that were not measured."
    ]
    again = _measured(gate, RELEARNING)
    if again is not None and again.after is not None:
        beside = (
            ""
            if again.level is None
            else f"; a model that never saw them: {_steps(again.level.value)}"
        )
        lines.append(
            "Whoever has the records can teach them again. The successor took "
            f"{_steps(again.after.value)}{beside}. Fewer steps mean that more of them was left."
        )
    auc = _measured(gate, MEMBERSHIP)
    if auc is not None and auc.after is not None and (auc.after.high or 1.0) < 0.5:
        lines.append(
            "The records are answered worse than records that nobody trained on (membership AUC "
            f"{auc.after.value:.2f}): whoever has a record can see that it was removed."
        )
    rounded = [name for name in gate.precisions if name.startswith("int")]
    if rounded:
        lines.append(
            f"{' and '.join(rounded)} stand for plain rounding of the merged weights. Other ways "
            "to round, or an adapter kept apart from a rounded base model, were not measured."
        )
    missing = [name for name in ("fp32", "bf16", "int8", "int4") if name not in gate.precisions]
    if missing:
        lines.append(f"Nothing was measured at {', '.join(missing)}: do not serve it so.")
    if guarantee != "none":
        lines.append(
            "The figures were computed from the records without noise; no epsilon covers them."
        )
    return lines


def _measured(gate: GateReport, name: str) -> Measurement | None:
    """The first that has a value."""
    every = (found for some in gate.precisions.values() for found in some)
    return next((found for found in every if found.name == name and found.after), None)


def _steps(value: float) -> str:
    return f"{value:g} step" + ("" if value == 1 else "s")


def _guarantee(claim: Claim, guarantee: Guarantee) -> list[str]:
    if guarantee == "void":
        return [
            "The adapter had a privacy guarantee, and the operator gave it up for this removal: "
            "the job looked at the records, and at others of the client, without noise. No "
            "(epsilon, delta) holds for that client any more."
        ]
    if guarantee == "none":
        return []
    if claim == "exact":
        return ["The rounds were private and charged for; each epsilon is what was last stated."]
    return [
        "The client's own machine drew the rows, added the noise and charged its ledger, as in "
        "every round: the server checked that the numbers add up, and saw none of it. The epsilon "
        "of each client is what was last stated.",
        "How long the job took, and that it was asked for, is not covered by epsilon.",
    ]
