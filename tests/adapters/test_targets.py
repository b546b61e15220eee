import re

import pytest
from torch import nn
from transformers.pytorch_utils import Conv1D

from fedpeft.adapters.targets import match_targets
from fedpeft.errors import ModelError


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(2, 2)
        self.subquery = nn.Linear(2, 2)
        self.mix = Conv1D(2, 2)
        self.norm = nn.LayerNorm(2)
        self.attention = nn.MultiheadAttention(2, 1)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Block() for _ in range(12))
        self.out = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["query"], [f"layer.{i}.query" for i in range(12)]),
        (["*query"], [f"layer.{i}.{q}" for i in range(12) for q in ("query", "subquery")]),
        (["layer.1.query"], ["layer.1.query"]),
        (["1.query"], ["layer.1.query"]),
        (["layer.1?.mix"], ["layer.10.mix", "layer.11.mix"]),
        (["layer.5.*"], ["layer.5.query", "layer.5.subquery", "layer.5.mix"]),
        (["out", "layer.0.mix", "0.mix"], ["layer.0.mix", "out"]),
    ],
)
def test_patterns(patterns: list[str], expected: list[str]) -> None:
    assert match_targets(Model(), patterns) == expected


def test_a_star_takes_every_plain_linear_module() -> None:
    found = match_targets(Model(), ["*"])
    assert len(found) == 12 * 3 + 1
    # Its weight is read past its forward, so that an adapter around it would never be called.
    assert not any("out_proj" in name for name in found)


@pytest.mark.parametrize("pattern", ["norm", "uery", "Query", "layer", "layer.12.query", "query."])
def test_a_pattern_that_means_nothing_lists_what_there_is(pattern: str) -> None:
    with pytest.raises(ModelError) as caught:
        match_targets(Model(), ["query", pattern])
    message = str(caught.value)
    assert re.search(rf"pattern {pattern!r} matches no linear module", message)
    assert "mix (x12), out (x1), query (x12), subquery (x12)" in message
    assert "a full name is layer.0.query" in message


def test_a_model_without_linear_modules() -> None:
    with pytest.raises(ModelError, match="the model has none at all"):
        match_targets(nn.LayerNorm(2), ["*"])
