"""Tiny models of real architectures with random weights, a real tokenizer, and rows for them."""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from fedpeft.models.dataset import Dataset

WARM = ("red", "orange", "yellow", "sun", "fire", "noon")
COLD = ("blue", "white", "grey", "moon", "ice", "night")
FILLERS = ("the", "a", "is", "was", "and", "very", "sky", "sea", "hill", "tree", "seen", "today")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "<s>", "</s>")
VOCABULARY = (*SPECIAL, *WARM, *COLD, *FILLERS, "Question", "Answer", ":", "?", "which", "it")
HIDDEN = 32


def tokenizer(*, classifier: bool, specials: bool = True) -> PreTrainedTokenizerFast:
    """One token a word; with [CLS] and [SEP], or with <s> and </s>, or with neither."""
    ids = {word: index for index, word in enumerate(VOCABULARY)}
    backend = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]"}
    if classifier and specials:
        names |= {"cls_token": "[CLS]", "sep_token": "[SEP]"}
        pair = [("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=pair
        )
    elif specials:
        names |= {"bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def save_bert(folder: Path, seed: int = 0) -> Path:
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=40,
        initializer_range=0.2,
    )
    return _save(folder, BertModel, config, seed, classifier=True)


def save_llama(folder: Path, seed: int = 0) -> Path:
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=40,
        initializer_range=0.2,
        tie_word_embeddings=False,
        **_ids(),
    )
    return _save(folder, LlamaForCausalLM, config, seed, classifier=False)


def save_gpt2(folder: Path, seed: int = 0) -> Path:
    """Its linear modules are Conv1D, and its output weight is the embedding's."""
    config = GPT2Config(
        vocab_size=len(VOCABULARY),
        n_embd=HIDDEN,
        n_layer=2,
        n_head=2,
        n_inner=48,
        n_positions=40,
        initializer_range=0.2,
        **_ids(),
    )
    return _save(folder, GPT2LMHeadModel, config, seed, classifier=False)


def write_rows(path: Path, num_rows: int, seed: int, *, labelled: bool = True) -> Path:
    """Sentences of 3 to 12 words; the label says which kind of word is in them."""
    rng = random.Random(seed)
    lines = []
    for row in range(num_rows):
        label = ("warm", "cold")[row % 2]
        words = rng.choices(FILLERS, k=rng.randint(2, 10))
        words += rng.choices(WARM if label == "warm" else COLD, k=rng.randint(1, 2))
        rng.shuffle(words)
        question = {"question": f"which is {words[0]} ?", "answer": " ".join(words[:3])}
        label_of = {"label": label} if labelled else {}
        lines.append(json.dumps({"text": " ".join(words), **label_of, **question}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def random_dataset(num_rows: int, seed: int, *, num_classes: int = 2) -> Dataset:
    """Token ids without a tokenizer, with lengths from 2 to 14."""
    rng = random.Random(seed)
    rows = [
        [rng.randrange(len(SPECIAL), len(VOCABULARY)) for _ in range(rng.randint(2, 14))]
        for _ in range(num_rows)
    ]
    return Dataset(input_ids=rows, targets=[rng.randrange(num_classes) for _ in rows], pad_id=0)


def equal_tensors(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return left.keys() == right.keys() and all(torch.equal(t, right[n]) for n, t in left.items())


def _ids() -> dict[str, int]:
    return {
        "pad_token_id": VOCABULARY.index("[PAD]"),
        "bos_token_id": VOCABULARY.index("<s>"),
        "eos_token_id": VOCABULARY.index("</s>"),
    }


def _save(folder: Path, kind: Any, config: Any, seed: int, *, classifier: bool) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(config)
        _shake(model)
    model.save_pretrained(folder)
    tokenizer(classifier=classifier).save_pretrained(folder)
    return folder


def _shake(model: nn.Module) -> None:
    """Biases and norms start at 0 and 1; other values find more mistakes."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
