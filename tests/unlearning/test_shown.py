"""What a model is seen to show, against the plain way to find it out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedpeft.errors import DataError
from fedpeft.models.base_model import load_base_model, load_tokenizer
from fedpeft.models.data_config import DataConfig
from fedpeft.models.dataset import Dataset, collate, encode_causal_lm
from fedpeft.models.model_config import ModelConfig
from fedpeft.models.table import Table
from fedpeft.models.tasks import CausalLanguageModel
from fedpeft.unlearning.gate.config import GateConfig
from fedpeft.unlearning.gate.precision import served_at
from fedpeft.unlearning.gate.rows import GateRows, gate_rows
from fedpeft.unlearning.gate.shown import Look
from fedpeft.unlearning.job_rows import job_tables
from fedpeft.unlearning.metrics.continuations import continuations
from fedpeft.unlearning.metrics.extraction import extraction_likelihood, prefix_lengths
from fedpeft.unlearning.metrics.rounded_weights import round_weight
from fedpeft.unlearning.records import JobRows

DATA = DataConfig(test="unused", question_column="question", answer_column="answer")
WORDS = ("red", "sea", "blue", "moon", "the", "fire", "is", "white", "and", "ice", "was", "seen")


def questions(count: int, *, truth: bool = False) -> list[dict[str, Any]]:
    random = np.random.default_rng(1)

    def words(length: int) -> str:
        return " ".join(random.choice(WORDS, length))

    rows = []
    for _ in range(count):
        row: dict[str, Any] = {"question": words(3), "answer": words(int(random.integers(5, 12)))}
        if truth:
            row["paraphrased_answer"] = words(6)
            row["perturbed_answer"] = [words(6) for _ in range(int(random.integers(1, 4)))]
        rows.append(row)
    return rows


def table(rows: Sequence[dict[str, Any]]) -> Table:
    return Table("rows", {name: [row[name] for row in rows] for name in rows[0]} if rows else {})


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> CausalLanguageModel:
    config = ModelConfig(name=str(tiny_llama), task="causal-lm", device="cpu")
    return CausalLanguageModel(load_base_model(config)).eval()


@pytest.fixture(scope="module")
def look(tiny_llama: Path) -> Look:
    config = ModelConfig(name=str(tiny_llama), task="causal-lm", device="cpu")
    tokenizer = load_tokenizer(config)

    def encode(rows: Table) -> Dataset:
        return encode_causal_lm(rows, DATA, tokenizer, 40)

    rows = gate_rows({"forget": table(questions(6, truth=True))}, DATA, encode)
    every = GateConfig(num_prefixes=100, ngram=3)
    return Look(rows=rows, tokenizer=tokenizer, config=every, max_tokens=64)


def test_extraction_generates_only_after_a_token_that_is_not_the_texts_own(
    look: Look, model: CausalLanguageModel
) -> None:
    """The same as continuing every prefix."""
    # The model's own words are in the text, so that some prefixes are continued by it.
    rows = look.rows.sets["forget"]
    said = continuations(model.base, [ids[:9] for ids in rows.input_ids], [8] * 6, pad_id=0)
    ids = [[*row[:9], *some] for row, some in zip(rows.input_ids, said, strict=True)]
    ids[0][12] = 7
    own = Dataset(input_ids=ids, targets=[7] * 6, pad_id=0)
    rows = GateRows(sets={"forget": own}, asked=True, truth={})
    here = Look(rows=rows, tokenizer=look.tokenizer, config=look.config, max_tokens=64)
    shown = here.at(model, "fp32", kinds=("forget",), extracted=("forget",))
    end = look.tokenizer.eos_token_id
    for row, text in enumerate(ids):
        lengths = prefix_lengths(text, 7, 3)
        plain = continuations(
            model.base,
            [text[:length] for length in lengths],
            [len(text) - length for length in lengths],
            pad_id=0,
            end_ids=[end],
        )
        expected = extraction_likelihood(text, plain, 3)
        assert shown.extraction["forget"][row] == pytest.approx(expected)
    assert 0 < shown.extraction["forget"].mean() <= 1


def test_losses_accuracy_and_truth_are_of_the_answers(
    look: Look, model: CausalLanguageModel
) -> None:
    shown = look.at(model, "fp32", kinds=("forget",))
    rows = look.rows.sets["forget"]
    with torch.inference_mode():
        for row in range(len(rows)):
            batch = collate(rows, [row], torch.device("cpu"))
            score = model.score(batch)
            assert shown.losses["forget"][row] == pytest.approx(score.loss / score.count, rel=1e-4)
            assert shown.accuracy["forget"][row] == pytest.approx(score.correct / score.count)
            losses = model.losses(
                collate(look.rows.truth["forget"].paraphrased, [row], torch.device("cpu"))
            )
            first = sum(look.rows.truth["forget"].num_wrong[:row])
            wrong = range(first, first + look.rows.truth["forget"].num_wrong[row])
            others = model.losses(
                collate(look.rows.truth["forget"].wrong, list(wrong), torch.device("cpu"))
            )
            ratio = float(torch.exp(losses - others.mean()))
            assert shown.truth["forget"][row] == pytest.approx(ratio, rel=1e-4)
    assert shown.extraction == {}
    assert shown.rouge == {}


def test_an_answer_known_by_heart_has_all_of_its_words(
    look: Look, model: CausalLanguageModel
) -> None:
    rows = look.rows.sets["forget"]
    prompts = [ids[:first] for ids, first in zip(rows.input_ids, rows.targets, strict=True)]
    said = continuations(model.base, prompts, [6] * 6, pad_id=0)
    known = Dataset(
        input_ids=[[*prompt, *answer] for prompt, answer in zip(prompts, said, strict=True)],
        targets=rows.targets,
        pad_id=0,
    )
    own = GateRows(sets={"forget": known, "retain": rows}, asked=True, truth={})
    here = Look(rows=own, tokenizer=look.tokenizer, config=look.config, max_tokens=64)
    kinds = ("forget", "retain")
    shown = here.at(model, "fp32", kinds=kinds, answered=kinds)
    assert shown.rouge["forget"].tolist() == [1.0] * 6
    assert shown.rouge["retain"].max() < 1
    assert shown.accuracy["forget"].tolist() == [1.0] * 6
    assert "forget" not in shown.extraction


def test_each_precision_is_another_model_for_a_while(
    model: CausalLanguageModel, look: Look
) -> None:
    names = [name for name, _ in model.named_parameters() if name.endswith("q_proj.weight")]
    before = {name: model.get_parameter(name).detach().clone() for name in names}
    losses = {}
    for precision in ("fp32", "bf16", "int8", "int4"):
        losses[precision] = look.at(model, precision, kinds=("forget",)).losses["forget"]
        for name in names:
            assert torch.equal(model.get_parameter(name), before[name])
    apart = {name: np.abs(losses[name] - losses["fp32"]).max() for name in losses}
    assert 0 < apart["int8"] < apart["int4"]
    assert 0 < apart["bf16"] < apart["int4"]
    with served_at(model, "int4"):
        torch.testing.assert_close(model.get_parameter(names[0]), round_weight(before[names[0]], 4))


@pytest.mark.parametrize("odd", [None, "a text", [], 3.0], ids=["none", "text", "empty", "number"])
def test_rows_without_wrong_answers_have_no_truth_ratio(odd: object, look: Look) -> None:
    rows = questions(3, truth=True)
    rows[1]["perturbed_answer"] = odd

    def encode(some: Table) -> Dataset:
        return encode_causal_lm(some, DATA, look.tokenizer, 40)

    assert gate_rows({"forget": table(rows)}, DATA, encode).truth == {}


def test_rows_that_stay_are_divided_once() -> None:
    model = ModelConfig(name="unused", task="causal-lm")
    rows = questions(30)
    some = JobRows(forget=rows[:4], retain=rows[4:24], held_out=rows[24:])
    tables = job_tables(some, model, DATA, check_share=0.25, seed=3)
    assert (tables.retain.num_rows, tables.check.num_rows, tables.shares) == (15, 5, False)
    together = [*tables.retain.records(), *tables.check.records()]
    assert sorted(row["question"] for row in together) == sorted(
        row["question"] for row in rows[4:24]
    )
    again = job_tables(some, model, DATA, check_share=0.25, seed=3)
    assert list(again.check.records()) == list(tables.check.records())
    few = job_tables(
        JobRows(forget=rows[:4], retain=rows[4:9]), model, DATA, check_share=0.25, seed=3
    )
    assert few.shares
    assert few.check.num_rows == few.retain.num_rows == 5
    assert few.held_out.num_rows == 0


def test_a_held_out_row_without_an_answer_is_refused() -> None:
    rows = questions(8)
    model = ModelConfig(name="unused", task="causal-lm")
    with pytest.raises(DataError, match="held-out rows: row 1 has no 'answer'"):
        job_tables(
            JobRows(forget=rows[:2], retain=rows[2:5], held_out=[{"question": "?"}]),
            model,
            DATA,
            check_share=0.5,
            seed=0,
        )
