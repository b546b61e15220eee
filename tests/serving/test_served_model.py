"""Which base models are served, and up to which length."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from fedpeft.errors import ModelError
from fedpeft.serving.generation import GenerationRequest, Generator, Piece
from fedpeft.serving.sampling import Sampling
from fedpeft.serving.served_model import ServedModel
from tests.tiny_models import HIDDEN, VOCABULARY, tokenizer

SIZES: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "bos_token_id": 4,
    "eos_token_id": 5,
}


def saved(folder: Path, kind: Any, config: Any) -> str:
    torch.manual_seed(0)
    kind(config).save_pretrained(folder)
    tokenizer(classifier=False).save_pretrained(folder)
    return str(folder)


def served(name: str) -> ServedModel:
    return ServedModel(name, "causal-lm", device="cpu")


def test_positions_are_the_bound(tiny_llama: Path) -> None:
    assert served(str(tiny_llama)).longest == 40
    assert ServedModel(str(tiny_llama), "causal-lm", device="cpu", longest=20).longest == 20


def test_a_window_is_the_bound_where_there_is_one(tmp_path: Path) -> None:
    config = MistralConfig(**SIZES, sliding_window=9)
    assert served(saved(tmp_path / "mistral", MistralForCausalLM, config)).longest == 9
    config = MistralConfig(**SIZES, sliding_window=None)
    assert served(saved(tmp_path / "whole", MistralForCausalLM, config)).longest == 40
    # Qwen2 has a window in its configuration that it does not use.
    unused = Qwen2Config(**SIZES, sliding_window=9, use_sliding_window=False)
    assert served(saved(tmp_path / "qwen", Qwen2ForCausalLM, unused)).longest == 40


def test_what_takes_no_positions_by_row_is_refused(tmp_path: Path) -> None:
    """Bloom's attention counts positions out of a mask of its own."""
    config = BloomConfig(vocab_size=len(VOCABULARY), hidden_size=HIDDEN, n_layer=2, n_head=4)
    with pytest.raises(ModelError, match="cannot be served"):
        served(saved(tmp_path, BloomForCausalLM, config))


def test_other_layers_than_attention_are_refused(tmp_path: Path) -> None:
    config = Qwen2Config(**SIZES)
    config.layer_types = ["full_attention", "linear_attention"]
    name = saved(tmp_path, Qwen2ForCausalLM, Qwen2Config(**SIZES))
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="cannot be"):
        served(name)


def test_a_cache_that_says_something_else_is_refused(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ServedModel.next_logits

    def shifted(self: ServedModel, ids: Any, positions: Any, last: Any, *rest: Any) -> Any:
        return original(self, ids, positions.clone() + (positions > 2), last, *rest)

    monkeypatch.setattr(ServedModel, "next_logits", shifted)
    with pytest.raises(ModelError, match="it says something else"):
        served(str(tiny_llama))


def test_the_base_model_needs_no_adapter_to_be_checked(tiny_gpt2: Path) -> None:
    model = served(str(tiny_gpt2))
    assert model.bank.digests == frozenset()
    heard: list[Any] = []
    generator = Generator(model, max_rows=1, max_waiting=1)
    generator.submit(
        [
            GenerationRequest(
                adapter="none", prompt=[7], sampling=Sampling(max_tokens=1), emit=heard.append
            )
        ]
    )
    generator.step()
    assert not any(isinstance(event, Piece) for event in heard)
