"""Removal jobs on an adapter that knows rows by heart, through the gate at default thresholds."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load

from fedpeft.errors import AdapterError, ConfigError, DataError, ModelError, PrivacyError
from fedpeft.registry.fingerprint import Fingerprint
from fedpeft.types import tensor_digest
from fedpeft.unlearning.gate.report import GateReport
from fedpeft.unlearning.job import (
    JobOrder,
    JobResult,
    measure_retrained,
    run_config_after,
    run_job,
)
from fedpeft.unlearning.methods import METHODS, REQUESTABLE
from fedpeft.unlearning.records import JobRows
from tests.unlearning.memorised import Memorised, memorise


@pytest.fixture(scope="module")
def known(shared_models: Path, shared_data: Path) -> Memorised:
    return memorise(shared_models, shared_data)


def failed(gate: GateReport, precision: str = "fp32") -> set[str]:
    return {
        found.name
        for name, some in gate.precisions.items()
        for found in some
        if name == precision and found.passed is False
    }


@pytest.fixture(scope="module")
def loku(known: Memorised) -> tuple[JobResult, bytes, dict[str, bytes], list[tuple[str, float]]]:
    told: list[tuple[str, float]] = []
    order = known.order("loku", "fp32", "int4")
    made = run_job(order, known.rows, known.blob, lambda phase, share: told.append((phase, share)))
    return *made, told


def test_loku_passes(loku: Any) -> None:
    result, _, _, _ = loku
    assert result.gate.passed, result.gate.reasons
    assert list(result.gate.precisions) == ["fp32", "int4"]
    assert (result.method, result.claim, result.privacy) == ("loku", "approximate", None)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3, 4])
def test_loku_passes_with_other_seeds_at_every_precision(known: Memorised, seed: int) -> None:
    order = known.order("loku", "fp32", "bf16", "int8", "int4", seed=seed)
    result, _, _ = run_job(order, known.rows, known.blob)
    assert result.gate.passed, result.gate.reasons
    assert list(result.gate.precisions) == ["fp32", "bf16", "int8", "int4"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gradient-ascent", "kl", "npo"])
def test_a_method_that_takes_the_rest_along_or_leaves_it_fails(
    known: Memorised, method: str
) -> None:
    result, _, _ = run_job(known.order(method), known.rows, known.blob)
    assert not result.gate.passed


def test_the_result_names_what_is_served(known: Memorised, loku: Any) -> None:
    result, blob, files, _ = loku
    assert result.digest == tensor_digest(load(blob))
    assert result.digest != tensor_digest(known.tensors)
    assert set(files) == {"adapter_config.json", "adapter_model.safetensors", "fedpeft.json"}
    before, after, expected = (
        Fingerprint.from_json(result.fingerprint[name]) for name in ("before", "after", "expected")
    )
    assert after.agrees_with(expected)
    assert not after.agrees_with(before)
    assert JobResult.from_json(result.to_json()) == result


def test_progress_rises_to_one(loku: Any) -> None:
    _, _, _, told = loku
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert list(dict.fromkeys(phase for phase, _ in told)) == [
        "load",
        "importance",
        "steps",
        "export",
        "verify",
    ]


def test_a_later_removal_starts_from_the_successor(known: Memorised, loku: Any) -> None:
    """The successor has a rank of its own, which its configuration says."""
    result, blob, _, _ = loku
    order = known.order("none")
    config = run_config_after(order, result)
    assert config["adapter"] != order.run_config["adapter"]
    again = order.model_copy(update={"run_config": config})
    found, _, _ = run_job(again, known.rows, blob)
    assert not found.gate.passed


def test_doing_nothing_fails(known: Memorised) -> None:
    """Other factors of the same update: another digest, the same model."""
    result, _, _ = run_job(known.order("none"), known.rows, known.blob)
    assert result.digest != tensor_digest(known.tensors)
    assert failed(result.gate) == {
        "change of the rows' losses",
        "memorization accuracy",
        "extraction likelihood",
        "extraction likelihood of the worst row",
        "ROUGE-L recall of the answers",
        "membership AUC",
        "steps to learn the rows again",
    }


def test_refusing_everything_fails_by_utility(known: Memorised) -> None:
    result, _, _ = run_job(known.order("refuse"), known.rows, known.blob)
    assert {"accuracy on rows that stay", "model utility"} <= failed(result.gate)
    assert "memorization accuracy" not in failed(result.gate)


def test_the_affected_version_itself_fails(known: Memorised) -> None:
    """Also where every measure would let it pass."""
    lenient = {"max_remaining": 0.99, "tolerance": 0.5, "membership_tolerance": 0.49}
    lenient |= {"min_change": 1e-30, "min_relearning": 0.0}
    order = known.order("retrain", settings={"gate": lenient})
    result, _, _ = measure_retrained(order, known.rows, known.blob, known.blob)
    assert "the successor is the affected version itself" in result.gate.reasons


def test_a_seed_repeats_the_job(known: Memorised) -> None:
    few = {"unlearning": {"learning_rate": 1e-3, "num_epochs": 2, "batch_size": 4}}
    quick = {"gate": {"relearning_steps": 2, "num_prefixes": 1, "max_rows": 4}}
    digests = [
        run_job(known.order("loku", settings=few | quick, seed=seed), known.rows, known.blob)[0]
        for seed in (1, 1, 2)
    ]
    assert digests[0].digest == digests[1].digest != digests[2].digest
    assert digests[0].gate == digests[1].gate


def test_rows_that_cannot_be_are_refused(known: Memorised) -> None:
    rows, order = known.rows, known.order("loku")

    def refused(match: str, **parts: Any) -> None:
        changed = {"forget": rows.forget, "retain": rows.retain, "held_out": rows.held_out} | parts
        with pytest.raises(DataError, match=match):
            run_job(order, JobRows(**changed), known.blob)

    refused("no rows to be forgotten", forget=[])
    refused("2 rows or more that stay, got 0", retain=[])
    renamed = [{**row, "source": "elsewhere"} for row in rows.forget[:3]]
    refused("3 of the rows that stay are among the rows to be", retain=[*rows.retain, *renamed])
    refused("3 of the held-out rows are among the rows to be", held_out=renamed)
    refused("3 of the held-out rows are among the rows that", held_out=rows.retain[:3])
    refused("row 1 has no 'answer'", forget=[{"question": "who?"}])


def test_orders_that_cannot_be_are_refused(known: Memorised) -> None:
    def refused(error: type[Exception], match: str, order: JobOrder, blob: bytes) -> None:
        with pytest.raises(error, match=match):
            run_job(order, known.rows, blob)

    blob = known.blob
    refused(ConfigError, "no method 'magic'", known.order("magic"), blob)
    refused(ConfigError, "rounds of a run", known.order("retrain"), blob)
    refused(PrivacyError, "adds no noise", known.order("loku", guarantee="charged"), blob)
    wrong = {"unlearning": {"epochs": 3}}
    refused(ConfigError, "epochs does not exist", known.order("loku", settings=wrong), blob)
    wrong = {"gate": {"max_remaining": 1.0}}
    refused(ConfigError, "max_remaining", known.order("loku", settings=wrong), blob)
    refused(ModelError, "another|was made for", known.order("loku", base_digest="0" * 64), blob)
    refused(AdapterError, "truncated", known.order("loku"), blob[:-1])
    other = {name.replace("layers.0", "layers.7"): t for name, t in known.tensors.items()}
    from safetensors.torch import save

    refused(AdapterError, "does not fit", known.order("none"), save(other))


def test_without_held_out_rows_membership_is_said_to_be_unknown(known: Memorised) -> None:
    rows = JobRows(forget=known.rows.forget, retain=known.rows.retain)
    result, _, _ = run_job(known.order("none"), rows, known.blob)
    assert "membership AUC" not in failed(result.gate)
    assert any("membership AUC: there are no held-out" in t for t in result.gate.not_measured)
    assert not result.gate.passed


def test_every_method_has_a_name_and_a_claim() -> None:
    assert set(METHODS) - set(REQUESTABLE) == {"none", "refuse"}
    assert {name for name, m in METHODS.items() if m.claim == "exact"} == {"retrain"}
    assert all(name == method.name for name, method in METHODS.items())
