"""The gate's decision, on made-up measurements: each bound, each precision, each absence."""

import json
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from fedpeft.errors import ProtocolError
from fedpeft.unlearning.gate.config import GateConfig
from fedpeft.unlearning.gate.measured import Relearning
from fedpeft.unlearning.gate.relearned import Relearned
from fedpeft.unlearning.gate.report import GateReport, Measurement
from tests.unlearning.shown import KNOWN, NUM_FORGET, UNKNOWN, decided, seen, shown


def named(report: GateReport, name: str, precision: str = "fp32") -> Measurement:
    (found,) = [
        measured
        for at, some in report.precisions.items()
        for measured in some
        if at == precision and measured.name == name
    ]
    return found


def test_rows_that_are_gone_pass() -> None:
    report = decided()
    assert report.passed, report.reasons
    assert (report.num_forget, report.num_retain, report.num_held_out) == (20, 24, 30)
    assert GateReport.from_json(report.model_dump_json()) == report


def test_every_precision_counts() -> None:
    """The text that comes back at int4 alone."""
    back = seen(shown(forget=KNOWN, seed=5))
    report = decided({"fp32": seen(), "bf16": seen(), "int8": seen(), "int4": back})
    assert not report.passed
    assert {reason.partition(":")[0] for reason in report.reasons} == {"int4"}
    missing = decided({"fp32": seen()}, precisions=("fp32", "int4"))
    assert missing.reasons == ("int4: was not measured",)


def test_utility_is_asked_for_where_it_is_served() -> None:
    worse = seen(shown(retain=UNKNOWN, seed=2))
    assert decided({"fp32": seen(), "int4": worse}).passed
    served = GateConfig(served=("fp32", "int4"))
    report = decided({"fp32": seen(), "int4": worse}, config=served)
    assert {reason.partition(":")[0] for reason in report.reasons} == {"int4"}
    assert decided({"int4": seen()}).reasons == (
        "utility was measured at none of fp32, bf16, as served",
    )


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("memorization accuracy", "accuracy"),
        ("extraction likelihood", "extraction"),
        ("ROUGE-L recall of the answers", "rouge"),
    ],
)
def test_each_measure_of_forgetting_stops_it_alone(name: str, part: str) -> None:
    known = {kind: getattr(shown(seed=2), part)[kind] for kind in ("forget", "held_out")}
    kept = getattr(shown(seed=2), part).get("retain")
    told = known | {"forget": np.full(NUM_FORGET, 0.9)} | ({} if kept is None else {"retain": kept})
    report = decided({"fp32": seen(shown(seed=2, **{part: told}))})
    worst = ["fp32: extraction likelihood of the worst row"] if part == "extraction" else []
    assert [reason.split(" is ")[0] for reason in report.reasons] == [f"fp32: {name}", *worst]


def test_one_row_that_is_given_away_whole_stops_it() -> None:
    extraction = {k: np.zeros(20) for k in ("forget", "held_out")}
    extraction["forget"][7] = 1.0
    report = decided({"fp32": seen(shown(seed=2, extraction=extraction))})
    assert [reason.split(" is ")[0] for reason in report.reasons] == [
        "fp32: extraction likelihood of the worst row"
    ]
    assert decided({"fp32": seen(shown(seed=2, extraction=extraction))}, is_exact=True).passed


def test_a_share_may_remain_and_no_more() -> None:
    """The bound lies between the level and what the affected version shows."""
    report = decided()
    found = named(report, "memorization accuracy")
    assert found.before is not None
    assert found.level is not None
    above = found.before.value - found.level.value
    assert found.at_most == pytest.approx(found.level.value + 0.3 * above)
    strict = decided(config=GateConfig(max_remaining=0.0, tolerance=0.0))
    found = named(strict, "memorization accuracy")
    assert found.level is not None
    assert found.at_most == pytest.approx(found.level.value)


def test_the_level_without_a_reference_is_the_higher_of_two() -> None:
    general = shown(forget=KNOWN, held_out=1.0, seed=1)
    report = decided({"fp32": seen(before=general)})
    found = named(report, "memorization accuracy")
    assert found.level is not None
    assert found.level.value == pytest.approx(general.accuracy["held_out"].mean())
    assert named(decided(), "memorization accuracy").level_of.startswith("the base model, or")


def test_a_reference_is_the_level() -> None:
    """A retrained model that answers the rows well by itself: so may the successor."""
    reference = shown(forget=0.5, seed=7)
    successor = seen(shown(forget=0.5, held_out=0.5, seed=2))
    assert not decided({"fp32": successor}).passed
    report = decided({"fp32": seen(shown(forget=0.5, held_out=0.5, seed=2), reference=reference)})
    assert report.passed, report.reasons
    assert report.reference
    assert report.not_measured == ()


def test_forget_quality_needs_a_reference() -> None:
    random = np.random.default_rng(0)
    never = {"forget": random.lognormal(size=60)}
    same, other = {"forget": random.lognormal(size=60)}, {"forget": 0.2 * never["forget"]}

    def report(after: dict[str, Any], reference: dict[str, Any] | None) -> GateReport:
        made = {} if reference is None else {"reference": shown(seed=7, truth=reference)}
        before = shown(forget=KNOWN, seed=1, truth=other)
        return decided({"fp32": seen(shown(seed=2, truth=after), before=before, **made)})

    assert named(report(same, never), "forget quality").passed
    assert named(report(other, never), "forget quality").passed is False
    alone = named(report(other, None), "truth ratio")
    assert (alone.passed, alone.note) == (None, "forget quality needs a retrained reference")


def test_membership_stops_what_still_tells_the_rows_apart() -> None:
    """Every answer is wrong, yet the rows' losses are lower than those of rows never seen."""
    wrong = shown(seed=2).accuracy
    after = shown(forget=2.0, seed=2, accuracy=wrong, extraction=wrong, rouge=wrong)
    report = decided({"fp32": seen(after)})
    assert [reason.split(" is ")[0] for reason in report.reasons] == ["fp32: membership AUC"]
    auc = named(report, "membership AUC").after
    assert auc is not None
    assert auc.low is not None
    assert 0.5 < auc.low <= auc.value


def test_membership_of_few_rows_is_not_stopped_by_chance() -> None:
    """Two rows on a side: all in order happens one time in six."""
    few = {kind: values[:2] for kind, values in shown().losses.items()}
    after = {"forget": few["held_out"] - 0.01, "retain": few["retain"], "held_out": few["held_out"]}

    def cut(loss: Any) -> Any:
        return shown(losses=loss, accuracy={k: np.exp(-v / 2) for k, v in loss.items()}, rouge={})

    base = {"forget": few["held_out"], "held_out": few["held_out"]}
    before = {**after, "forget": few["forget"] * 0.01}
    report = decided({"fp32": seen(cut(after), before=cut(before), base=cut(base))})
    found = named(report, "membership AUC")
    assert found.passed
    assert found.after is not None
    assert found.after.low is not None
    assert found.after.low < 0.5


def test_without_held_out_rows_it_says_so() -> None:
    alone = seen(
        shown(held_out=None, seed=2),
        before=shown(forget=KNOWN, held_out=None, seed=1),
        base=shown(retain=UNKNOWN, held_out=None, seed=3),
    )
    report = decided(
        {"fp32": alone}, relearned=Relearning(after=Relearned(steps=3, reached=True), level=None)
    )
    assert report.passed, report.reasons
    assert report.not_measured[0].startswith("membership AUC: there are no held-out rows")
    again = named(report, "steps to learn the rows again")
    assert (again.passed, again.at_least) == (None, None)


def test_rows_that_come_back_at_once_do_not_pass() -> None:
    soon = Relearning(
        after=Relearned(steps=1, reached=True), level=Relearned(steps=10, reached=True)
    )
    report = decided(relearned=soon)
    assert report.reasons == ("fp32: steps to learn the rows again is 1, at least 1.5 passes",)


def test_doing_nothing_fails_even_where_nothing_was_known() -> None:
    """Rows that the affected version never learned: no measure of forgetting can tell."""
    unknown = shown(seed=1)
    report = decided({"fp32": seen(unknown, before=unknown)}, relearned=None)
    assert [reason.split(" is ")[0] for reason in report.reasons] == [
        "fp32: change of the rows' losses"
    ]
    assert any("does not know the rows better" in line for line in report.not_measured)


def test_the_affected_version_always_fails() -> None:
    assert decided(same_tensors=True).reasons == ("the successor is the affected version itself",)


def test_refusing_everything_fails_by_utility() -> None:
    report = decided({"fp32": seen(shown(retain=UNKNOWN, seed=2))})
    assert [reason.split(" is ")[0] for reason in report.reasons] == [
        "fp32: accuracy on rows that stay",
        "fp32: model utility",
    ]


def test_chance_does_not_stop_a_retrained_adapter() -> None:
    """Its claim does not rest on the measure; a whole interval beyond the bound still does."""
    accuracy = dict(shown(seed=2).accuracy)
    accuracy["forget"] = np.array([0.0, 1.0] * 10)
    chance = {"fp32": seen(shown(seed=2, accuracy=accuracy))}
    assert not decided(chance).passed
    assert decided(chance, is_exact=True).passed
    accuracy["forget"] = np.full(NUM_FORGET, 0.9)
    assert not decided({"fp32": seen(shown(seed=2, accuracy=accuracy))}, is_exact=True).passed


def test_a_classifier_is_measured_by_its_confidence() -> None:
    report = decided(is_causal=False)
    assert report.passed, report.reasons
    assert named(report, "confidence").passed
    known = decided({"fp32": seen(shown(forget=KNOWN, seed=5))}, is_causal=False)
    assert named(known, "confidence").passed is False


@pytest.mark.parametrize("kind", ["forget", "retain"])
def test_what_is_no_number_fails(kind: str) -> None:
    losses = dict(shown(seed=2).losses)
    losses[kind] = np.full(len(losses[kind]), np.nan)
    accuracy = {name: np.exp(-values) for name, values in losses.items()}
    report = decided({"fp32": seen(shown(seed=2, losses=losses, accuracy=accuracy))})
    assert any("not a finite number" in reason for reason in report.reasons)


def test_nothing_measured_does_not_pass() -> None:
    empty = shown(seed=2)
    without = {kind: values for kind, values in empty.losses.items() if kind != "retain"}
    accuracy = {kind: values for kind, values in empty.accuracy.items() if kind != "retain"}
    report = decided({"fp32": seen(shown(losses=without, accuracy=accuracy, rouge={}))})
    assert report.reasons == (
        "fp32: utility could not be decided: nothing was measured that has a bound",
    )


def test_a_report_whose_decision_does_not_follow_is_refused() -> None:
    failed = decided(same_tensors=True).model_dump(mode="json")
    with pytest.raises(ProtocolError, match="does not follow"):
        GateReport.from_json(json.dumps(failed | {"passed": True}))
    back = decided({"fp32": seen(shown(forget=KNOWN, seed=5))}).model_dump(mode="json")
    with pytest.raises(ValidationError, match="does not follow"):
        GateReport.model_validate(back | {"passed": True, "reasons": []})
    with pytest.raises(ValidationError, match="does not follow"):
        GateReport.model_validate(decided().model_dump(mode="json") | {"precisions": {}})


def test_a_report_that_leaves_out_what_decides_is_refused() -> None:
    report = decided().model_dump(mode="json")
    for kind in ("change", "forgetting"):
        kept = {
            precision: [measured for measured in some if measured["kind"] != kind]
            for precision, some in report["precisions"].items()
        }
        with pytest.raises(ValidationError, match="does not follow"):
            GateReport.model_validate(report | {"precisions": kept})


def test_a_threshold_that_passes_everything_is_refused() -> None:
    for wrong in ({"max_remaining": 1.0}, {"min_change": 0.0}, {"served": ()}, {"max_rows": 1}):
        with pytest.raises(ValidationError):
            GateConfig.model_validate(wrong)
    assert UNKNOWN > KNOWN
