"""Tiny models for the DP tests: one whose gradients are given, and three real architectures."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from fedpeft.adapters.config import AdapterConfig
from fedpeft.adapters.lora import LoraLinear
from fedpeft.dp.canaries import GivenGradients as Given
from fedpeft.dp.mechanism import CohortBatch, DpSgd, DpSgdConfig, PhysicalBatch, cohort_step
from fedpeft.dp.randomness import Keystream
from fedpeft.federated.adapted_model import AdaptedModel
from fedpeft.models.dataset import Dataset
from fedpeft.models.model_config import ModelConfig
from fedpeft.models.tasks import ClassifierHead

ODD_VALUES = (math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-45, -1e-40, 1e-38, 1e30, -1e30, 3e38)

_VOCABULARY = 40
_HIDDEN = 16


class AdaptedHead(nn.Module):
    """An adapted map of tokens, their mean, and a head: all that is trained privately, small."""

    TRAINED = ("lora.lora_b", "head.weight", "head.bias")

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.lora = LoraLinear(nn.Linear(5, 4), torch.randn(2, 5, generator=generator), 1.0)
        self.lora.base.requires_grad_(False)
        self.head = ClassifierHead(4, 3)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(generator=generator)

    @staticmethod
    def inputs() -> Tensor:
        """Four rows of six tokens."""
        return torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(1))

    def losses(self, x_NTI: Tensor, targets_N: Tensor) -> Tensor:
        logits_NC = self.head(self.lora(x_NTI).tanh().mean(1))
        return nn.functional.cross_entropy(logits_NC, targets_N, reduction="none")


def given_batches(
    model: Given, gradients_ND: Tensor, rows: NDArray[np.int64], size: int
) -> list[PhysicalBatch]:
    """Cuts rows into physical batches of the given size."""
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    return [(part, lambda part=part: model.losses(gradients_ND[part])) for part in parts]


def run_honest(
    gradients_ND: NDArray[np.float32], config: DpSgdConfig, num_steps: int
) -> NDArray[np.float64]:
    """A `dp.checks.Run` of `dp.mechanism`, on a model whose gradients are given."""
    model, gradients = Given(gradients_ND.shape[1]), torch.from_numpy(gradients_ND)
    mechanism = DpSgd(model, config, Keystream.insecure_from_seed(0))
    steps = []
    for _ in range(num_steps):
        mean = mechanism.step(lambda rows: given_batches(model, gradients, rows, 16)).mean
        steps.append(torch.cat([tensor.flatten() for tensor in mean.values()]).double().numpy())
    return np.array(steps)


def run_in_cohort(
    gradients_ND: NDArray[np.float32],
    config: DpSgdConfig,
    num_steps: int,
    *,
    others_ND: Tensor | None = None,
) -> NDArray[np.float64]:
    """A `dp.checks.Run` of the first of two clients that share forward and backward passes.

    The second has as many rows, whose gradients are `others_ND` (default: the opposite ones).
    """
    gradients = torch.from_numpy(gradients_ND)
    both = torch.stack([gradients, -gradients if others_ND is None else others_ND])
    model = Given(gradients_ND.shape[1])
    members = [DpSgd(model, config, Keystream.insecure_from_seed(seed)) for seed in (0, 1)]

    def to_batches(samples: Sequence[NDArray[np.int64]]) -> list[CohortBatch]:
        pairs = [(int(row), k) for k, rows in enumerate(samples) for row in rows]
        pairs.sort()
        batches = []
        for start in range(0, len(pairs), 7):
            rows, owners = np.array(pairs[start : start + 7]).T
            x_ND = both[owners, rows]
            losses = partial(model.losses, x_ND)
            batches.append(CohortBatch(rows=rows, owners=owners, losses=losses))
        return batches

    steps = []
    for _ in range(num_steps):
        mean = cohort_step(members, to_batches)[0].mean
        steps.append(torch.cat([tensor.flatten() for tensor in mean.values()]).double().numpy())
    return np.array(steps)


def bert() -> AdaptedModel:
    """A classifier with LoRA on query and value."""
    config = BertConfig(
        vocab_size=_VOCABULARY,
        hidden_size=_HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=24,
        initializer_range=0.3,
    )
    base = _seeded(lambda: BertModel(config, add_pooling_layer=False))
    return _adapted(base, "classification", ("query", "value", "output.dense"))


def llama() -> AdaptedModel:
    """A causal language model with LoRA on attention and MLP."""
    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=_HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=24,
        max_position_embeddings=24,
        initializer_range=0.3,
        pad_token_id=0,
    )
    return _adapted(_seeded(lambda: LlamaForCausalLM(config)), "causal-lm", ("q_proj", "down_proj"))


def gpt2() -> AdaptedModel:
    """A causal language model whose linear modules are Conv1D."""
    config = GPT2Config(
        vocab_size=_VOCABULARY,
        n_embd=_HIDDEN,
        n_layer=2,
        n_head=2,
        n_positions=24,
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    base = _seeded(lambda: GPT2LMHeadModel(config))
    return _adapted(base, "causal-lm", ("c_attn", "mlp.c_proj"))


def rows_of_tokens(lengths: Sequence[int], *, seed: int = 0) -> Dataset:
    """Random token ids of the given lengths; targets fit both tasks."""
    generator = torch.Generator().manual_seed(seed)
    return Dataset(
        input_ids=[
            torch.randint(2, _VOCABULARY, (length,), generator=generator).tolist()
            for length in lengths
        ],
        targets=torch.randint(1, 3, (len(lengths),), generator=generator).tolist(),
        pad_id=0,
    )


def _seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build()
    return model.requires_grad_(False).eval()


def _adapted(base: nn.Module, task: str, targets: tuple[str, ...]) -> AdaptedModel:
    model = AdaptedModel(
        base,
        ModelConfig.model_validate({"name": "tiny", "task": task, "device": "cpu"}),
        AdapterConfig(target_modules=targets, rank=3, alpha=5.0),
        num_classes=3,
        seed=0,
    )
    model.set_trainable(["lora_a", "lora_b"])
    # Where B and the head are zero, A has no gradient.
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.task_model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.3, generator=generator)
    return model
