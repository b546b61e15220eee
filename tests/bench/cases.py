"""Tiny cases on the shared tiny models."""

from pathlib import Path

import torch

from fedpeft.bench.cases import LLAMA_LINEAR, Case
from fedpeft.bench.dp_step import StepSettings


def bert_case(folder: Path) -> Case:
    return Case(
        name="tiny-4x7",
        model=str(folder),
        task="classification",
        num_rows=4,
        num_tokens=7,
        rank=2,
        target_modules=("query", "value"),
    )


def llama_case(folder: Path) -> Case:
    return Case(
        name="tiny-3x9",
        model=str(folder),
        task="causal-lm",
        num_rows=3,
        num_tokens=9,
        rank=2,
        target_modules=LLAMA_LINEAR,
    )


def gpt2_case(folder: Path) -> Case:
    return llama_case(folder).model_copy(update={"target_modules": ("c_attn", "c_proj")})


def settings(*, num_blocks: int = 1, with_opacus: bool = True) -> StepSettings:
    return StepSettings(
        num_blocks=num_blocks,
        num_warmup_blocks=0,
        seed=0,
        device=torch.device("cpu"),
        with_opacus=with_opacus,
        with_memory=False,
    )
