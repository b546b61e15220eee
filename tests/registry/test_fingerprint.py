"""Fingerprints of outputs: against the model's own loss, and what they tell apart."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedpeft.errors import AdapterError, ProtocolError
from fedpeft.models.base_model import load_base_model, load_tokenizer
from fedpeft.models.model_config import ModelConfig
from fedpeft.registry.fingerprint import PROBES, Fingerprint, fingerprint, probe_rows


class Language:
    """A tiny language model whose output can be disturbed."""

    def __init__(self, folder: Path) -> None:
        config = ModelConfig(name=str(folder), task="causal-lm", device="cpu")
        self.model = load_base_model(config)
        self.tokenizer = load_tokenizer(config)

    def logits_of(self, rows: list[list[int]]) -> Sequence[Tensor]:
        with torch.inference_mode():
            return [self.model(input_ids=torch.tensor([row])).logits[0] for row in rows]

    def fingerprint(self) -> Fingerprint:
        return fingerprint(self.logits_of, self.tokenizer, causal=True)


@pytest.fixture
def language(tiny_llama: Path) -> Language:
    return Language(tiny_llama)


def test_a_value_is_minus_the_loss_that_transformers_takes(language: Language) -> None:
    found = language.fingerprint().values
    assert len(found) == len(PROBES) == 8
    for value, row in zip(found, probe_rows(language.tokenizer, causal=True), strict=True):
        ids = torch.tensor([row])
        with torch.inference_mode():
            loss = language.model(input_ids=ids, labels=ids).loss
        assert value == pytest.approx(-float(loss), abs=1e-5)


def test_another_weight_is_another_fingerprint(language: Language) -> None:
    before = language.fingerprint()
    assert language.fingerprint() == before
    with torch.no_grad():
        language.model.get_submodule("model.layers.1.mlp.down_proj").weight += 0.01  # type: ignore[operator]
    after = language.fingerprint()
    assert not after.agrees_with(before)
    assert after.distance(before) == max(
        abs(a - b) for a, b in zip(after.values, before.values, strict=True)
    )


def test_a_classifier_says_a_log_probability_a_class(tiny_bert: Path) -> None:
    config = ModelConfig(name=str(tiny_bert), task="classification", device="cpu")
    tokenizer = load_tokenizer(config)
    head = nn.Linear(1, 3)

    def logits_of(rows: list[list[int]]) -> list[Tensor]:
        assert all(row[0] == tokenizer.cls_token_id for row in rows)
        return [head(torch.tensor([float(len(row))])) for row in rows]

    found = fingerprint(logits_of, tokenizer, causal=False)
    assert len(found.values) == 3 * len(PROBES)
    assert sum(math.exp(value) for value in found.values[:3]) == pytest.approx(1)


def test_outputs_that_are_not_finite_are_refused(language: Language) -> None:
    with torch.no_grad():
        language.model.get_submodule("model.norm").weight.fill_(math.nan)  # type: ignore[union-attr, operator]
    with pytest.raises(AdapterError, match="not finite"):
        language.fingerprint()


def test_json_and_back_is_the_same_to_the_bit() -> None:
    found = Fingerprint(values=(-1 / 3, -2.5, 0.1))
    assert Fingerprint.from_json(found.to_json()) == found


def test_the_tolerance_counts_the_largest_difference() -> None:
    found = Fingerprint(values=(-1.0, -2.0))
    assert found.agrees_with(Fingerprint(values=(-1.0, -2.0009)))
    assert not found.agrees_with(Fingerprint(values=(-1.0, -2.0011)))
    assert found.agrees_with(Fingerprint(values=(-1.0, -2.4)), tolerance=0.5)
    assert not found.agrees_with(Fingerprint(values=(-1.0,)), tolerance=1e9)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        {"version": 1},
        {"version": 2, "values": [1.0]},
        {"version": 1, "values": []},
        {"version": 1, "values": [1.0, "2"]},
        {"version": 1, "values": [True]},
        {"version": 1, "values": [1.0], "more": 0},
        '{"version": 1, "values": [NaN]}',
    ],
)
def test_what_is_no_fingerprint_is_refused(content: Any) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    with pytest.raises(ProtocolError, match="no fingerprint"):
        Fingerprint.from_json(text)
