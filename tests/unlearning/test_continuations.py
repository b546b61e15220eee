"""Greedy continuations in batches, against one step after the other."""

from pathlib import Path

import pytest
import torch
from torch import nn

from fedpeft.errors import DataError
from fedpeft.models.base_model import load_base_model
from fedpeft.models.model_config import ModelConfig
from fedpeft.unlearning.metrics.continuations import continuations

PREFIXES = [[8, 9, 10], [7], [20, 21, 22, 23, 24], [11, 12], [9, 9, 9, 9]]
LENGTHS = [6, 4, 3, 6, 0]


@pytest.fixture(params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    folder: Path = request.getfixturevalue(f"tiny_{request.param}")
    return load_base_model(ModelConfig(name=str(folder), task="causal-lm", device="cpu"))


def one_by_one(model: nn.Module, prefix: list[int], num_tokens: int) -> list[int]:
    said: list[int] = []
    with torch.inference_mode():
        for _ in range(num_tokens):
            ids = torch.tensor([prefix + said])
            out = model(input_ids=ids, attention_mask=torch.ones_like(ids))
            said.append(int(out.logits[0, -1].argmax()))
    return said


def test_batches_say_what_each_prefix_says_alone(model: nn.Module) -> None:
    expected = [one_by_one(model, p, n) for p, n in zip(PREFIXES, LENGTHS, strict=True)]
    for batch_size in (1, 2, 32):
        found = continuations(model, PREFIXES, LENGTHS, pad_id=0, batch_size=batch_size)
        assert found == expected
    assert len({tuple(said) for said in expected}) > 3


def test_an_end_is_the_last_token(model: nn.Module) -> None:
    expected = one_by_one(model, PREFIXES[0], 6)
    end = expected[2]
    (found,) = continuations(model, PREFIXES[:1], [6], pad_id=0, end_ids=[end])
    assert found == expected[: expected.index(end) + 1]


def test_an_empty_prefix_is_refused(model: nn.Module) -> None:
    with pytest.raises(DataError, match="a prefix needs"):
        continuations(model, [[1], []], [1, 1], pad_id=0)
