"""Removal jobs on a classifier that knows rows with wrong labels by heart."""

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load, save

from fedpeft.adapters.config import AdapterConfig
from fedpeft.errors import ConfigError, DataError, PrivacyError, VerificationError
from fedpeft.federated.adapted_model import AdaptedModel
from fedpeft.models.base_model import load_base_model, load_tokenizer
from fedpeft.models.data_config import DataConfig
from fedpeft.models.dataset import Dataset, collate, encode_classification
from fedpeft.models.label_space import LabelSpace
from fedpeft.models.model_config import ModelConfig
from fedpeft.models.table import Table
from fedpeft.types import tensor_digest
from fedpeft.unlearning.gate.report import GateReport
from fedpeft.unlearning.gate.verify import Verification, Version, verify
from fedpeft.unlearning.job import JobOrder, JobResult, measure_retrained, run_job
from fedpeft.unlearning.low_rank_edit import Successor
from fedpeft.unlearning.methods import METHODS, Removal
from fedpeft.unlearning.methods.loku import Loku
from fedpeft.unlearning.metrics.rounded_weights import rounded_weights
from fedpeft.unlearning.records import JobRows
from tests.tiny_models import write_rows
from tests.unlearning.memorised import learn

LABELS = ("cold", "warm")
SETTINGS = {"learning_rate": 5e-3, "num_epochs": 20, "batch_size": 8, "rank": 4}


class Classifier:
    """A tiny BERT; the rows to be forgotten have the other label."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        self.model = ModelConfig(
            name=str(folder), task="classification", device="cpu", max_length=24
        )
        self.data = DataConfig(test="unused")
        self.adapter = AdapterConfig(rank=8, target_modules=("query", "value", "dense"))
        lines = write_rows(scratch / "rows.jsonl", 120, seed=4).read_text().splitlines()
        rows = [{k: json.loads(line)[k] for k in ("text", "label")} for line in lines]
        odd = [row | {"label": {"warm": "cold", "cold": "warm"}[row["label"]]} for row in rows[:24]]
        self.rows = JobRows(forget=odd[:10], retain=rows[24:80], held_out=odd[10:])
        base = load_base_model(self.model)
        self.base_digest = tensor_digest(base.state_dict())
        self.never = self.trained([*self.rows.retain])
        self.known = self.trained([*self.rows.forget, *self.rows.retain])

    def trained(self, rows: list[Any]) -> bytes:
        model = AdaptedModel(
            load_base_model(self.model), self.model, self.adapter, num_classes=2, seed=0
        )
        learn(model, self.encoded(rows), num_steps=150)
        return bytes(save(model.tensors()))

    def encoded(self, rows: Sequence[Mapping[str, Any]]) -> Dataset:
        table = Table("rows", {name: [row[name] for row in rows] for name in ("text", "label")})
        tokenizer = load_tokenizer(self.model)
        return encode_classification(table, self.data, LabelSpace(LABELS), tokenizer, 24)

    def order(self, method: str, **more: Any) -> JobOrder:
        config = {"model": self.model, "data": self.data, "adapter": self.adapter}
        return JobOrder.model_validate(
            {
                "request_id": "00000000000000bb",
                "run_config": {name: part.model_dump(mode="json") for name, part in config.items()},
                "base_digest": self.base_digest,
                "labels": LABELS,
                "method": method,
                "num_records": len(self.rows.forget),
                "settings": {"unlearning": SETTINGS},
                "precisions": ("fp32", "int8"),
                "seed": 2,
            }
            | more
        )


@pytest.fixture(scope="module")
def known(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    return Classifier(tiny_bert, tmp_path_factory.mktemp("rows"))


def failed(result: JobResult) -> set[str]:
    return {m.name for some in result.gate.precisions.values() for m in some if m.passed is False}


def test_loku_passes_and_its_head_travels(known: Classifier) -> None:
    result, blob, files = run_job(known.order("loku"), known.rows, known.known)
    assert result.gate.passed, result.gate.reasons
    tensors = load(blob)
    assert result.digest == tensor_digest(tensors)
    assert {"head.weight", "head.bias"} <= set(tensors)
    assert "head.safetensors" in files
    assert json.loads(files["fedpeft.json"])["labels"] == list(LABELS)
    assert [m.name for m in result.gate.precisions["int8"]] == [
        "change of the rows' losses",
        "confidence",
        "membership AUC",
        "accuracy on rows that stay",
        "loss on rows that stay",
        "accuracy on held-out rows",
    ]


def test_doing_nothing_fails(known: Classifier) -> None:
    result, _, _ = run_job(known.order("none"), known.rows, known.known)
    assert failed(result) >= {
        "change of the rows' losses",
        "confidence",
        "membership AUC",
        "steps to learn the rows again",
    }


def test_always_the_same_answer_fails_by_utility(known: Classifier) -> None:
    result, _, _ = run_job(known.order("refuse"), known.rows, known.known)
    assert "accuracy on rows that stay" in failed(result)


def test_what_the_rounds_made_again_is_measured(known: Classifier) -> None:
    result, blob, _ = measure_retrained(
        known.order("retrain"), known.rows, known.known, known.never
    )
    assert result.gate.passed, result.gate.reasons
    assert (result.method, result.claim) == ("retrain", "exact")
    assert result.digest == tensor_digest(load(blob))
    again = load(known.never)
    assert all(torch.equal(load(blob)[name], again[name]) for name in again)


def test_a_label_that_the_run_does_not_know_is_refused(known: Classifier) -> None:
    odd = JobRows(forget=[{"text": "the sun", "label": "hot"}], retain=known.rows.retain)
    with pytest.raises(DataError, match="'hot'"):
        run_job(known.order("loku"), odd, known.known)


def test_a_job_that_is_to_be_charged_is_not_done_here(known: Classifier) -> None:
    charged = known.order("loku", guarantee="charged")
    for method in (None, METHODS["loku"]):
        with pytest.raises(PrivacyError, match="adds no noise"):
            run_job(charged, known.rows, known.known, method=method)
    with pytest.raises(ConfigError, match="'npo', and 'loku' was given"):
        run_job(known.order("npo"), known.rows, known.known, method=METHODS["loku"])


def test_an_export_that_computes_something_else_is_no_result(
    known: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scaling is lost on the way to the file."""
    from fedpeft.unlearning import exported

    write = exported.export_adapter

    def without_scaling(directory: Path, *arguments: Any) -> None:
        write(directory, *arguments)
        path = directory / "adapter_config.json"
        content = json.loads(path.read_text())
        content["lora_alpha"] *= 2
        path.write_text(json.dumps(content))

    monkeypatch.setattr(exported, "export_adapter", without_scaling)
    monkeypatch.setattr(
        "fedpeft.adapters.lora.isclose", lambda a, b: True
    )  # past our own reader, to peft's
    with pytest.raises(VerificationError, match="what was exported is not what was made"):
        run_job(known.order("loku"), known.rows, known.known)


def test_utility_is_measured_on_rows_that_the_method_did_not_see(
    known: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[set[tuple[int, ...]]] = []
    checked: list[set[tuple[int, ...]]] = []

    class Watching(Loku):
        def make(self, removal: Removal) -> Successor:
            trained.append({tuple(ids) for ids in removal.retain.input_ids})
            return METHODS["none"].make(removal)

    def spy(verification: Verification, told: Any) -> GateReport:
        checked.append({tuple(ids) for ids in verification.look.rows.sets["retain"].input_ids})
        return verify(verification, told)

    monkeypatch.setattr("fedpeft.unlearning.job.verify", spy)
    run_job(known.order("loku"), known.rows, known.known, method=Watching())
    assert len(checked[0]) == 14
    assert len(trained[0]) == 42
    assert not checked[0] & trained[0]


def test_a_retrained_reference_is_what_it_is_compared_with(known: Classifier) -> None:
    reference = Version(adapter=known.adapter, tensors=load(known.never))
    result, _, _ = run_job(known.order("loku"), known.rows, known.known, reference=reference)
    assert result.gate.reference
    assert result.gate.not_measured == ()
    (confidence,) = [m for m in result.gate.precisions["fp32"] if m.name == "confidence"]
    assert confidence.level_of == "a model retrained without the rows"
    found = confidence_of(known, known.never)
    assert confidence.level is not None
    assert confidence.level.value == pytest.approx(found, abs=1e-5)


def test_rounded_weights_are_those_of_the_merged_model(known: Classifier) -> None:
    """As it is served: an adapter kept apart from a rounded base is another model."""
    order = known.order("none", precisions=("fp32", "int4"))
    result, blob, _ = run_job(order, known.rows, known.known)
    (found,) = [m for m in result.gate.precisions["int4"] if m.name == "confidence"]
    assert found.after is not None
    assert found.after.value == pytest.approx(confidence_of(known, blob, bits=4), abs=1e-5)
    assert found.after.value != pytest.approx(confidence_of(known, blob), abs=1e-5)


def confidence_of(known: Classifier, tensors: bytes, bits: Literal[4] | None = None) -> float:
    """In the rows to be forgotten, without the gate."""
    model = AdaptedModel(
        load_base_model(known.model), known.model, known.adapter, num_classes=2, seed=0
    )
    model.load(load(tensors))
    rows = known.encoded(known.rows.forget)
    model.method.merge(model.task_model)
    with torch.no_grad():
        rounded = nullcontext() if bits is None else rounded_weights(model.task_model, bits)
        with rounded:
            losses = model.task_model.losses(collate(rows, range(len(rows)), model.device))
    return float(torch.exp(-losses).mean())
