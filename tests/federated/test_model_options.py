"""Half precision, checkpointing and compilation change what a step costs, not what it computes."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from fedpeft.adapters.lora import LoraLinear
from fedpeft.dp.grad_sample import per_example_grads
from fedpeft.errors import ModelError, PrivacyError
from fedpeft.federated.adapted_model import AdaptedModel
from fedpeft.federated.local_training import train_locally
from fedpeft.models.base_model import load_base_model
from fedpeft.models.checkpointing import checkpoint_layers
from fedpeft.models.dataset import collate
from fedpeft.models.evaluation import evaluate
from fedpeft.models.model_config import ModelConfig
from tests.federated.small_runs import SEEDED, SmallRun, run_config
from tests.tiny_models import random_dataset

CPU = torch.device("cpu")
KINDS: dict[str, dict[str, Any]] = {
    "bert": {},
    "llama": {"task": "causal-lm", "adapter": {"target_modules": ("*_proj",)}},
    "gpt2": {"task": "causal-lm", "adapter": {"target_modules": ("c_attn",)}},
}
HALF, KEPT_LESS, COMPILED = (
    {"precision": "bfloat16"},
    {"gradient_checkpointing": True},
    {"compile": True},
)


class Case:
    """One tiny model under some options, with weights that differ from the start's zeros."""

    def __init__(
        self, kind: str, request: pytest.FixtureRequest, scratch: Path, options: Mapping[str, Any]
    ) -> None:
        folder: Path = request.getfixturevalue(f"tiny_{kind}")
        config = run_config(
            folder, scratch, privacy=SEEDED, num_rows=60, model_fields=options, **KINDS[kind]
        )
        self.simulation = SmallRun(config=config, folder=scratch / "run").simulation()
        self.model: AdaptedModel = self.simulation.model
        self.model.set_trainable(("lora_b",))
        generator = torch.Generator().manual_seed(0)
        self.model.load(
            {
                name: tensor + 0.2 * torch.randn(tensor.shape, generator=generator)
                for name, tensor in self.model.tensors().items()
            }
        )

    def losses(self, num_rows: int = 7) -> Tensor:
        batch = collate(random_dataset(num_rows, seed=0), range(num_rows), CPU)
        return self.model.task_model.losses(batch)

    def grads_ND(self, num_rows: int = 7) -> Tensor:
        grads = per_example_grads(self.model.task_model, num_rows, lambda: self.losses(num_rows))
        assert {grad.dtype for grad in grads.values()} == {torch.float32}
        return torch.cat([grad.flatten(1) for grad in grads.values()], 1)

    def trained(self, num_clients: int) -> Tensor:
        """What private local training with seeded coins and noise changes."""
        names = list(self.simulation.plan.clients)[:num_clients]
        cohort = [self.simulation.trainer.local_client(name, 1) for name in names]
        start = self.model.tensors()
        results = train_locally(self.model, cohort, self.simulation.federation, max_tokens=64)
        return torch.cat(
            [(t - start[name]).flatten() for r in results for name, t in r.tensors.items()]
        )

    def score(self) -> dict[str, float]:
        task = self.simulation.task
        return evaluate(self.model.task_model, random_dataset(9, seed=3), task=task, max_tokens=40)


def error(found: Tensor, expected: Tensor) -> float:
    """Largest error of a row, relative to the row's norm."""
    errors = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
    return float(errors.max())


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_changes_no_bit(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    plain = Case(kind, request, tmp_path / "a", {})
    less = Case(kind, request, tmp_path / "b", KEPT_LESS)
    kept = {id(case): _kept_bytes(case) for case in (plain, less)}
    assert kept[id(less)] < 0.6 * kept[id(plain)], "nothing was checkpointed"
    assert torch.equal(less.grads_ND(), plain.grads_ND())
    assert torch.equal(less.trained(2), plain.trained(2))
    assert less.score() == plain.score()


def _kept_bytes(case: Case) -> int:
    """Bytes that the forward pass keeps for backward, parameters apart."""
    own = {p.data_ptr() for p in case.model.task_model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        losses = case.losses()
    assert losses.requires_grad
    return sum(kept.values())


def test_checkpointed_layers_drop_nothing(tiny_bert: Path) -> None:
    """In training mode a dropout of 0.1 would make two passes differ."""
    base = load_base_model(ModelConfig(name=str(tiny_bert), task="classification"))
    assert base.config.hidden_dropout_prob == 0.1
    layer = base.encoder.layer[0]
    layer.attention_dropout, layer.num_heads = 0.1, 2
    checkpoint_layers(base)
    assert (layer.attention_dropout, layer.num_heads) == (0.0, 2)
    ids = torch.ones(2, 5, dtype=torch.int64)
    first, second = (base(input_ids=ids).last_hidden_state for _ in range(2))
    assert torch.equal(first, second)
    drops = [module for module in base.modules() if isinstance(module, nn.Dropout)]
    assert drops
    assert not any(module.training for module in drops)


def test_compilation_and_checkpointing_do_not_go_together() -> None:
    with pytest.raises(ValueError, match="compile and gradient_checkpointing do not go together"):
        ModelConfig.model_validate({"name": "x", "task": "causal-lm"} | COMPILED | KEPT_LESS)


def test_a_model_that_cannot_be_checkpointed_is_named() -> None:
    with pytest.raises(ModelError, match=r"Linear; set model\.gradient_checkpointing = false"):
        checkpoint_layers(nn.Linear(2, 2))


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_near(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Gradients to a cosine of 0.995 and 5 % of their norm: bfloat16 rounds by up to 0.4 %."""
    plain = Case(kind, request, tmp_path / "a", {})
    half = Case(kind, request, tmp_path / "b", HALF)
    expected, found = plain.grads_ND(), half.grads_ND()
    cosines = torch.nn.functional.cosine_similarity(found, expected)
    assert cosines.min() > 0.995
    torch.testing.assert_close(found.norm(dim=1), expected.norm(dim=1), rtol=0.05, atol=0)
    assert error(found, expected) > 1e-4, "nothing was rounded"
    assert error(half.trained(2), plain.trained(2)) < 0.03
    # What is exported is float32, and is scored as such.
    assert half.score() == plain.score()


def test_half_precision_is_of_the_base_alone(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    case = Case("bert", request, tmp_path, HALF)
    dtypes: dict[str, set[torch.dtype]] = {"base": set(), "adapter": set(), "head": set()}
    adapted = next(m for m in case.model.task_model.modules() if isinstance(m, LoraLinear))
    adapted.base.register_forward_hook(lambda m, x, y: dtypes["base"].add(y.dtype))
    case.model.task_model.head.register_forward_hook(
        lambda m, x, y: dtypes["head"].update({x[0].dtype, y.dtype})
    )
    products = torch.bmm

    def bmm(left: Tensor, right: Tensor) -> Tensor:
        out = products(left, right)
        dtypes["adapter"].add(out.dtype)
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "bmm", bmm)
        case.grads_ND()
    assert dtypes == {
        "base": {torch.bfloat16},
        "adapter": {torch.float32},
        "head": {torch.float32},
    }


def test_compiled_graphs_take_parameters_and_sizes_as_inputs(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other values and other sizes do not compile again; the graphs are run, not generated code."""
    graphs, real = CompileCounter(), torch.compile
    torch._dynamo.reset()
    monkeypatch.setattr(
        torch, "compile", lambda f, **options: real(f, backend=graphs, fullgraph=True, **options)
    )
    plain = Case("bert", request, tmp_path / "a", {})
    compiled = Case("bert", request, tmp_path / "b", COMPILED)
    for num_rows in (7, 3, 5):
        assert error(compiled.grads_ND(num_rows), plain.grads_ND(num_rows)) < 1e-5
    assert graphs.frame_count == 1
    assert error(compiled.trained(3), plain.trained(3)) < 1e-5
    seen = graphs.frame_count
    assert error(compiled.trained(3), plain.trained(3)) < 1e-5
    assert graphs.frame_count == seen
    for name, value in plain.score().items():
        assert math.isclose(compiled.score()[name], value, rel_tol=1e-5)
    assert list(compiled.model.tensors()) == list(plain.model.tensors())
    # Hooks would be passed by.
    norm = compiled.model.task_model.base.embeddings.LayerNorm.requires_grad_(True)
    with pytest.raises(PrivacyError, match=r"embeddings\.LayerNorm is trained by hooks"):
        compiled.grads_ND()
    norm.requires_grad_(False)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_code_equals_the_model(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Generated code in float32: 1e-5."""
    torch._dynamo.reset()
    plain = Case(kind, request, tmp_path / "a", {})
    compiled = Case(kind, request, tmp_path / "b", COMPILED)
    assert error(compiled.grads_ND(), plain.grads_ND()) < 1e-5
    assert error(compiled.trained(1), plain.trained(1)) < 1e-5
    for name, value in plain.score().items():
        assert math.isclose(compiled.score()[name], value, rel_tol=1e-5)
