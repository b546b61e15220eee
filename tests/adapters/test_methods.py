"""One contract suite for every adapter method, on three architectures."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import DebertaV2Config, DebertaV2Model

from fedpeft.adapters.config import AdapterConfig
from fedpeft.adapters.contract import AdapterMethod
from fedpeft.adapters.linear import weight_of
from fedpeft.adapters.lora import LoraLinear, lora_pairs
from fedpeft.dp.grad_sample import per_example_grads
from fedpeft.errors import AdapterError, ModelError, PrivacyError
from fedpeft.federated.adapted_model import METHODS
from fedpeft.models.base_model import load_base_model
from fedpeft.models.dataset import Batch, collate
from fedpeft.models.model_config import ModelConfig
from fedpeft.models.tasks import CausalLanguageModel, SequenceClassifier
from tests.tiny_models import equal_tensors, random_dataset

# peft 0.21 asks transformers 5.23 for a property that the latter renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")

CPU = torch.device("cpu")
TARGETS = {
    "tiny_bert": ("query", "value", "layer.1.output.dense"),
    "tiny_llama": ("q_proj", "v_proj", "layers.0.mlp.*"),
    "tiny_gpt2": ("c_attn", "mlp.c_fc", "mlp.c_proj"),
}
NUM_ADAPTED = {"tiny_bert": 5, "tiny_llama": 7, "tiny_gpt2": 6}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A saved model, and what is adapted in it."""

    name: str
    model: ModelConfig
    config: AdapterConfig

    def build(self) -> nn.Module:
        base = load_base_model(self.model)
        if self.model.task == "classification":
            return SequenceClassifier(base, 2)
        return CausalLanguageModel(base)


@pytest.fixture(params=sorted(METHODS))
def method(request: pytest.FixtureRequest) -> AdapterMethod:
    return METHODS[request.param]


@pytest.fixture(params=sorted(TARGETS))
def case(request: pytest.FixtureRequest, method: AdapterMethod) -> Case:
    folder: Path = request.getfixturevalue(request.param)
    task = "classification" if request.param == "tiny_bert" else "causal-lm"
    return Case(
        name=request.param,
        model=ModelConfig(name=str(folder), task=task, device="cpu"),
        config=AdapterConfig(
            method=method.name, rank=4, alpha=6.0, target_modules=TARGETS[request.param]
        ),
    )


def batch() -> Batch:
    dataset = random_dataset(5, seed=1)
    return collate(dataset, range(5), CPU)


def output(base: nn.Module) -> Tensor:
    """Hidden states or logits, zero where a token is padding."""
    rows = batch()
    with torch.no_grad():
        out = base(input_ids=rows.input_ids_NT, attention_mask=rows.attention_mask_NT)
    found: Tensor = out.last_hidden_state if "last_hidden_state" in out else out.logits
    return found * rows.attention_mask_NT.unsqueeze(2)


def trained(tensors: Mapping[str, Tensor], seed: int = 7) -> dict[str, Tensor]:
    """The tensors after a training that never was."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: t + 0.1 * torch.randn(t.shape, generator=generator) for name, t in tensors.items()
    }


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def test_injection_preserves_the_function_exactly(method: AdapterMethod, case: Case) -> None:
    model = case.build()
    before = output(model.base)
    names = method.inject(model, case.config, seed=3)
    assert len(names) == NUM_ADAPTED[case.name]
    assert torch.equal(output(model.base), before)
    assert {n for n, p in model.named_parameters() if p.requires_grad} <= set(method.tensors(model))


def test_injection_is_a_function_of_the_seed(method: AdapterMethod, case: Case) -> None:
    tensors = []
    for seed in (3, 3, 4):
        model = case.build()
        method.inject(model, case.config, seed)
        tensors.append(method.tensors(model))
    assert equal_tensors(tensors[0], tensors[1])
    assert not equal_tensors(tensors[0], tensors[2])
    first, second = list(lora_pairs(tensors[0]).values())[:2]
    assert not torch.equal(first[0], second[0]), "two modules drew the same A"


def test_only_the_named_factors_train(method: AdapterMethod, case: Case) -> None:
    model = case.build()
    names = method.inject(model, case.config, seed=3)
    model.requires_grad_(False)
    for factors in (["lora_b"], ["lora_a", "lora_b"], []):
        method.set_trainable(model, factors)
        found = {n for n, p in model.named_parameters() if p.requires_grad}
        assert found == {f"{name}.{factor}" for name in names for factor in factors}


def test_tensors_and_load_round_trip(method: AdapterMethod, case: Case) -> None:
    model = case.build()
    names = method.inject(model, case.config, seed=3)
    before = method.tensors(model)
    assert {n.rpartition(".")[0] for n in before} == set(names)
    assert all(t.dtype == torch.float32 and t.device == CPU for t in before.values())
    changed = trained(before)
    plain = output(model.base)
    method.load(model, changed)
    assert equal_tensors(method.tensors(model), changed)
    assert relative(output(model.base), plain) > 1e-2
    copies = method.tensors(model)
    for tensor in copies.values():
        tensor.zero_()
    assert equal_tensors(method.tensors(model), changed), "tensors() hands out the parameters"
    method.load(model, before)
    assert torch.equal(output(model.base), plain)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing", "1 tensors are missing"),
        ("unknown", "1 are unknown"),
        ("shape", "expected shape"),
        ("nan", "NaN or infinite"),
        ("inf", "NaN or infinite"),
    ],
)
def test_load_refuses_what_does_not_fit_and_changes_nothing(
    method: AdapterMethod, tiny_bert: Path, damage: str, message: str
) -> None:
    config = AdapterConfig(method=method.name, rank=4, target_modules=("query",))
    model = SequenceClassifier(load_base_model(_config(tiny_bert)), 2)
    method.inject(model, config, seed=3)
    before = method.tensors(model)
    tensors = trained(before)
    last = list(tensors)[-1]
    if damage == "missing":
        del tensors[last]
    elif damage == "unknown":
        tensors["base.nowhere.lora_b"] = torch.zeros(2, 2)
    elif damage == "shape":
        tensors[last] = tensors[last].T.contiguous()
    else:
        tensors[last][0, 0] = math.nan if damage == "nan" else -math.inf
    with pytest.raises(AdapterError, match=message):
        method.load(model, tensors)
    assert equal_tensors(method.tensors(model), before)


def test_delta_norm_is_the_norm_of_the_change(method: AdapterMethod, case: Case) -> None:
    model = case.build()
    names = method.inject(model, case.config, seed=3)
    assert method.delta_norm(method.tensors(model), case.config) == 0
    before = {name: weight_of(model.get_submodule(name).base).clone() for name in names}
    method.load(model, trained(method.tensors(model)))
    norm = method.delta_norm(method.tensors(model), case.config)
    method.merge(model)
    changes = [weight_of(model.get_submodule(name)) - before[name] for name in names]
    expected = math.sqrt(sum(float(change.double().square().sum()) for change in changes))
    assert norm == pytest.approx(expected, rel=1e-5)


def test_merging_computes_what_the_adapter_computed(method: AdapterMethod, case: Case) -> None:
    model = case.build()
    method.inject(model, case.config, seed=3)
    method.load(model, trained(method.tensors(model)))
    adapted = output(model.base)
    method.merge(model)
    assert relative(output(model.base), adapted) < 1e-5
    assert not any(isinstance(module, LoraLinear) for module in model.modules())
    plain = case.build()
    kinds = [type(module) for module in plain.modules()]
    assert [type(module) for module in model.modules()] == kinds
    assert relative(output(plain.base), adapted) > 1e-2


def test_merging_leaves_tied_embeddings_alone(method: AdapterMethod, tiny_gpt2: Path) -> None:
    model = CausalLanguageModel(load_base_model(_config(tiny_gpt2, "causal-lm")))
    assert model.base.lm_head.weight is model.base.transformer.wte.weight
    config = AdapterConfig(method=method.name, rank=4, target_modules=("lm_head",))
    method.inject(model, config, seed=3)
    method.load(model, trained(method.tensors(model)))
    adapted = output(model.base)
    method.merge(model)
    assert relative(output(model.base), adapted) < 1e-5


def test_peft_computes_the_same_from_the_export(
    method: AdapterMethod, case: Case, tmp_path: Path
) -> None:
    model = case.build()
    method.inject(model, case.config, seed=3)
    tensors = trained(method.tensors(model))
    method.load(model, tensors)
    method.export_peft(
        model,
        tensors,
        case.config,
        tmp_path / "adapter",
        base_model=case.model.name,
        task_type="CAUSAL_LM" if case.model.task == "causal-lm" else "FEATURE_EXTRACTION",
        prefix="base",
    )
    assert sorted(p.name for p in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    peft_model = PeftModel.from_pretrained(
        load_base_model(case.model), str(tmp_path / "adapter")
    ).eval()
    assert relative(output(peft_model), output(model.base)) < 1e-5
    assert relative(output(peft_model), output(case.build().base)) > 1e-2
    imported = method.import_peft(tmp_path / "adapter", case.config, prefix="base")
    assert equal_tensors(imported, tensors)


def test_an_adapter_of_the_peft_library_is_understood(
    method: AdapterMethod, case: Case, tmp_path: Path
) -> None:
    names = method.inject(case.build(), case.config, seed=3)
    peft_config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=[name.removeprefix("base.") for name in names],
        fan_in_fan_out=case.name == "tiny_gpt2",
        lora_dropout=0.3,
    )
    peft_model = get_peft_model(load_base_model(case.model), peft_config).eval()
    torch.manual_seed(1)
    for name, parameter in peft_model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    peft_model.save_pretrained(str(tmp_path))
    model = case.build()
    method.inject(model, case.config, seed=3)
    method.load(model, method.import_peft(tmp_path, case.config, prefix="base"))
    assert relative(output(model.base), output(peft_model)) < 1e-5


@pytest.mark.parametrize(
    "settings",
    [
        {"use_rslora": True},
        {"use_dora": True},
        {"alpha_pattern": {"layer.0.attention.self.query": 1}},
        {"rank_pattern": {"layer.0.attention.self.query": 2}},
        {"bias": "lora_only"},
        {"r": 2},
        {"lora_alpha": 3},
        {"modules_to_save": ["embeddings"]},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_an_adapter_that_would_compute_something_else_is_refused(
    method: AdapterMethod, tiny_bert: Path, tmp_path: Path, settings: dict[str, object]
) -> None:
    options = {"r": 4, "lora_alpha": 6, "target_modules": ["query"], **settings}
    peft_model = get_peft_model(load_base_model(_config(tiny_bert)), LoraConfig(**options))
    peft_model.save_pretrained(str(tmp_path), save_embedding_layers=False)
    config = AdapterConfig(method=method.name, rank=4, alpha=6.0, target_modules=("query",))
    with pytest.raises(AdapterError):
        method.import_peft(tmp_path, config, prefix="base")


def test_too_large_a_rank_names_the_module(method: AdapterMethod, tiny_llama: Path) -> None:
    model = CausalLanguageModel(load_base_model(_config(tiny_llama, "causal-lm")))
    config = AdapterConfig(method=method.name, rank=17, target_modules=("q_proj", "v_proj"))
    with pytest.raises(AdapterError, match=r"rank 17 .*layers\.0\.self_attn\.v_proj.* most 16"):
        method.inject(model, config, seed=0)
    assert not any(isinstance(module, LoraLinear) for module in model.modules())


def test_a_star_adapts_the_base_and_not_the_head(method: AdapterMethod, tiny_bert: Path) -> None:
    model = SequenceClassifier(load_base_model(_config(tiny_bert)), 2)
    config = AdapterConfig(method=method.name, rank=2, target_modules=("*",))
    names = method.inject(model, config, seed=0)
    assert len(names) == 12
    assert all(name.startswith("base.") for name in names)
    with pytest.raises(ModelError, match="matches no linear module"):
        method.inject(
            SequenceClassifier(load_base_model(_config(tiny_bert)), 2),
            AdapterConfig(method=method.name, rank=2, target_modules=("head",)),
            seed=0,
        )


def deberta(method: AdapterMethod, target: str) -> SequenceClassifier:
    """DeBERTa projects the position embeddings of all rows at once with its query projection."""
    torch.manual_seed(0)
    config = DebertaV2Config(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=40,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        share_att_key=True,
        position_buckets=8,
    )
    model = SequenceClassifier(DebertaV2Model(config).eval(), 2)
    model.head.freeze_random(torch.Generator().manual_seed(0))
    method.inject(model, AdapterConfig(method=method.name, rank=2, target_modules=(target,)), 0)
    method.set_trainable(model, ["lora_b"])
    return model


def test_private_training_refuses_modules_that_examples_share(method: AdapterMethod) -> None:
    """Each row's own copy would take a slice of the positions of all rows.

    Its gradient would hold parts of several examples' losses, which no clip bounds.
    """
    model = deberta(method, "query_proj")
    rows = collate(random_dataset(4, seed=0), range(4), CPU)
    with pytest.raises(PrivacyError, match="no per-example gradient"):
        per_example_grads(model, 4, lambda: model.losses(rows))


def test_per_example_gradients_are_those_of_each_row_alone(method: AdapterMethod) -> None:
    model = deberta(method, "value_proj")
    dataset = random_dataset(4, seed=0)
    rows = collate(dataset, range(4), CPU)
    grads = per_example_grads(model, 4, lambda: model.losses(rows))
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    for row in range(4):
        loss = model.losses(collate(dataset, [row], CPU)).sum()
        alone = torch.autograd.grad(loss, list(trainable.values()))
        for name, grad in zip(trainable, alone, strict=True):
            assert relative(grads[name][row], grad) < 1e-4


def test_factors_without_partner_are_refused() -> None:
    a, b = torch.ones(2, 3), torch.ones(4, 2)
    assert list(lora_pairs({"m.lora_a": a, "m.lora_b": b, "head.weight": a})) == ["m"]
    for tensors in ({"m.lora_a": a}, {"m.lora_b": b}, {"m.lora_a": a, "m.lora_b": b[:, :1]}):
        with pytest.raises(AdapterError, match="m needs lora_a"):
            lora_pairs(tensors)


def _config(folder: Path, task: str = "classification") -> ModelConfig:
    return ModelConfig.model_validate({"name": str(folder), "task": task, "device": "cpu"})
