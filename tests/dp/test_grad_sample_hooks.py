"""Ordinary modules, trained privately through Opacus. Legend: N rows, T tokens, F features."""

import builtins
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.pytorch_utils import Conv1D

from fedpeft.dp import grad_sample_hooks
from fedpeft.dp.grad_sample import per_example_grads, trainable_parameters
from fedpeft.dp.mechanism import CohortBatch, DpSgd, DpSgdConfig, cohort_step
from fedpeft.dp.randomness import Keystream
from fedpeft.errors import PrivacyError
from fedpeft.federated.adapted_model import AdaptedModel
from fedpeft.models.dataset import Dataset, collate
from fedpeft.models.tasks import ClassifierHead
from tests.dp.models import bert, llama, rows_of_tokens

_CPU = torch.device("cpu")
_N, _T, _F = 5, 6, 4


class Chain(nn.Module):
    """A trained head-like layer below, the module in the middle, a non-linearity on top."""

    def __init__(self, middle: nn.Module, below: nn.Module | None) -> None:
        super().__init__()
        self.below, self.middle = below, middle

    def forward(self, x: Tensor) -> Tensor:
        return self.middle(x if self.below is None else self.below(x)).sin().flatten(1).sum(1)


def _tokens() -> Tensor:
    return torch.randint(0, 7, (_N, _T), generator=torch.Generator().manual_seed(0))


def _features(*shape: int) -> Tensor:
    return torch.randn(_N, *shape, generator=torch.Generator().manual_seed(0))


_MODULES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "linear": (lambda: nn.Linear(_F, 3), lambda: _features(_F)),
    "linear-of-tokens": (lambda: nn.Linear(_F, 3), lambda: _features(_T, _F)),
    "linear-4d": (lambda: nn.Linear(_F, 3, bias=False), lambda: _features(2, _T, _F)),
    "layer-norm": (lambda: nn.LayerNorm(_F), lambda: _features(_T, _F)),
    "layer-norm-2d": (lambda: nn.LayerNorm((_T, _F)), lambda: _features(2, _T, _F)),
    "group-norm": (lambda: nn.GroupNorm(2, _F), lambda: _features(_F, _T)),
    "rms-norm": (lambda: nn.RMSNorm(_F), lambda: _features(_T, _F)),
    "conv1d": (lambda: nn.Conv1d(_F, 6, 3, padding=1, groups=2), lambda: _features(_F, _T)),
    "conv2d": (lambda: nn.Conv2d(_F, 3, 2, stride=2), lambda: _features(_F, _T, _T)),
    "embedding": (lambda: nn.Embedding(7, 3), _tokens),
    "embedding-padded": (lambda: nn.Embedding(7, 3, padding_idx=2), _tokens),
    # Without a rule of Opacus for them: run again for each row.
    "llama-norm": (lambda: LlamaRMSNorm(_F), lambda: _features(_T, _F)),
    "transformers-conv1d": (lambda: Conv1D(3, _F), lambda: _features(_T, _F)),
}


def _built(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = build()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter))
    return module.eval()


def _row_by_row(
    model: nn.Module, losses: Callable[[slice], Tensor], num_rows: int
) -> dict[str, Tensor]:
    parameters = trainable_parameters(model)
    rows = [
        torch.autograd.grad(losses(slice(n, n + 1)).sum(), list(parameters.values()))
        for n in range(num_rows)
    ]
    return {name: torch.stack(parts) for name, *parts in zip(parameters, *rows, strict=True)}


def _assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, grad in expected.items():
        assert grad.norm() > 1e-3, f"{name} has no gradient that could be wrong"
        error = float((found[name] - grad).norm() / grad.norm())
        assert error < 1e-5, f"{name} is off by {error}"


def _traces(model: nn.Module) -> list[str]:
    """Whatever a module or parameter holds that a plain one does not."""
    found = []
    for name, module in model.named_modules():
        hooks = [module._forward_hooks, module._backward_hooks, module._forward_pre_hooks]
        found += [f"hooks of {name}"] if any(hooks) else []
        found += [f"{name}.{x}" for x in grad_sample_hooks._LEFTOVERS if hasattr(module, x)]
        found += [f"training of {name}"] if module.training else []
    for name, parameter in model.named_parameters():
        found += [f"{name}.{x}" for x in vars(parameter)]
        found += [f"{name}.grad"] if parameter.grad is not None else []
    return found


@pytest.mark.parametrize("first", [True, False], ids=["first", "second"])
@pytest.mark.parametrize("kind", _MODULES)
def test_equals_autograd_row_by_row(kind: str, first: bool):
    """Also above another trained module, where its input has a gradient of its own."""
    build, inputs = _MODULES[kind]
    x = inputs()
    x = x.double() if x.is_floating_point() else x
    below = None
    if not first and x.is_floating_point():
        below = _built(lambda: nn.Linear(x.shape[-1], x.shape[-1]))
    model = Chain(_built(build), below).eval().double()
    parameters = dict(model.named_parameters())
    found = per_example_grads(model, _N, lambda: model(x))
    expected = _row_by_row(model, lambda rows: model(x[rows]), _N)
    _assert_equal(found, expected)
    assert all(parameters[name] is p for name, p in model.named_parameters())
    assert _traces(model) == []


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_half_of_a_module_may_be_frozen(frozen: str):
    model = Chain(_built(lambda: nn.Linear(_F, 3)), None)
    model.middle.get_parameter(frozen).requires_grad_(False)
    x = _features(_T, _F)
    found = per_example_grads(model, _N, lambda: model(x))
    assert len(found) == 1
    _assert_equal(found, _row_by_row(model, lambda rows: model(x[rows]), _N))


def test_module_that_no_row_uses_has_gradient_zero():
    model = nn.ModuleList([_built(lambda: nn.Linear(3, 2)), _built(lambda: nn.Linear(3, 2))])
    found = per_example_grads(model, _N, lambda: model[0](torch.ones(_N, 3)).sum(1))
    assert found["0.weight"].any()
    assert found["1.weight"].shape == (_N, 2, 3)
    assert not found["1.weight"].any()


def _with_norms(build: Callable[[], AdaptedModel], kind: type[nn.Module]) -> AdaptedModel:
    """LoRA B, all norms, and the head where there is one."""
    model = build()
    model.set_trainable(["lora_b"])
    for module in model.task_model.modules():
        if isinstance(module, kind):
            module.requires_grad_(True)
    return model


@pytest.mark.parametrize(
    ("build", "kind"), [(bert, nn.LayerNorm), (llama, LlamaRMSNorm)], ids=["bert", "llama"]
)
def test_a_transformer_with_adapters_norms_and_head(
    build: Callable[[], AdaptedModel], kind: type[nn.Module]
):
    """Rows of unequal length in one padded batch against each row alone."""
    model = _with_norms(build, kind)
    task_model, dataset = model.task_model, rows_of_tokens((4, 11, 3, 7, 7, 5))
    batch = collate(dataset, range(6), _CPU)
    found = per_example_grads(task_model, 6, lambda: task_model.losses(batch))
    kinds = {name.rpartition(".")[2] for name in found}
    assert {"lora_b", "weight"} <= kinds

    def alone(rows: slice) -> Tensor:
        return task_model.losses(collate(dataset, range(6)[rows], _CPU))

    expected = _row_by_row(task_model, alone, 6)
    _assert_equal(found, expected)
    assert _traces(task_model) == []


def test_the_word_embedding_of_a_transformer():
    """The pad token is a word of a row here, whose gradient autograd leaves out."""
    model = bert()
    model.set_trainable(["lora_b"])
    embedding = model.task_model.base.embeddings.word_embeddings
    embedding.requires_grad_(True)
    assert embedding.padding_idx == 0
    rows = rows_of_tokens((4, 11, 3))
    ids = [[0, *row[1:]] for row in rows.input_ids]
    dataset = Dataset(input_ids=ids, targets=rows.targets, pad_id=5)
    batch = collate(dataset, range(3), _CPU)
    found = per_example_grads(model.task_model, 3, lambda: model.task_model.losses(batch))
    expected = _row_by_row(
        model.task_model,
        lambda rows: model.task_model.losses(collate(dataset, range(3)[rows], _CPU)),
        3,
    )
    _assert_equal(found, expected)


def test_position_embeddings_that_rows_share_are_refused():
    model = bert()
    model.task_model.base.embeddings.position_embeddings.requires_grad_(True)
    batch = collate(rows_of_tokens((4, 5, 6)), range(3), _CPU)
    with pytest.raises(PrivacyError, match=r"Embedding must map one tensor of 3 rows.*\(1, 6\)"):
        per_example_grads(model.task_model, 3, lambda: model.task_model.losses(batch))
    assert _traces(model.task_model) == []


def test_a_wrong_reduction_is_caught(monkeypatch: pytest.MonkeyPatch):
    """Of a mean over rows Opacus multiplies the gradients by their number."""
    import opacus

    honest = opacus.GradSampleModule.__init__

    def of_a_mean(self: Any, *args: Any, **kwargs: Any) -> None:
        honest(self, *args, **{**kwargs, "loss_reduction": "mean"})

    monkeypatch.setattr(opacus.GradSampleModule, "__init__", of_a_mean)
    with pytest.raises(AssertionError, match="is off by 4"):
        test_equals_autograd_row_by_row("layer-norm", first=True)


def test_an_exception_leaves_nothing_behind():
    model = Chain(_built(lambda: nn.LayerNorm(_F)), _built(lambda: Conv1D(_F, _F))).eval()
    parameters = dict(model.named_parameters())

    def fail_after_forward() -> Tensor:
        model(_features(_T, _F))
        raise RuntimeError("out of memory")

    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            raise RuntimeError("out of memory")

    def fail_in_backward() -> Tensor:
        model.middle.register_forward_hook(lambda module, x, y: Fails.apply(y))
        return model(_features(_T, _F))

    for losses in (fail_after_forward, fail_in_backward):
        with pytest.raises(RuntimeError, match="out of memory"):
            per_example_grads(model, _N, losses)
        model.middle._forward_hooks.clear()
        assert all(parameters[name] is p for name, p in model.named_parameters())
        assert _traces(model) == []
    assert per_example_grads(model, _N, lambda: model(_features(_T, _F)))


def test_hooks_that_were_half_made_are_removed():
    class CannotBeCopied(Conv1D):
        def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
            raise RuntimeError("no copy")

    model = Chain(CannotBeCopied(3, _F), _built(lambda: nn.Linear(_F, _F))).eval()
    with pytest.raises(RuntimeError, match="no copy"):
        per_example_grads(model, _N, lambda: model(_features(_F)))
    assert _traces(model) == []


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(_F, _F)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x)).sum(1)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(_F, _F), nn.Linear(_F, _F)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x)).sum(1)


def _layer(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: Chain(build(), None)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (Twice, "called twice in a forward pass"),
        (Tied, "two.weight is the same parameter as one.weight"),
        (_layer(lambda: nn.BatchNorm1d(_F)), "batch norm"),
        (_layer(lambda: nn.InstanceNorm1d(_F, affine=True, track_running_stats=True)), "buffers"),
        (_layer(lambda: nn.MultiheadAttention(_F, 2)), "cannot be told apart"),
        (_layer(lambda: nn.LayerNorm(_F, bias=False)), "expects a bias"),
        (_layer(lambda: nn.Embedding(7, 3, max_norm=1.0)), "max_norm"),
        (_layer(lambda: nn.Embedding(7, 3, scale_grad_by_freq=True)), "scale_grad_by_freq"),
        (_layer(lambda: nn.Conv1d(_F, 2, 3, padding=1, padding_mode="circular")), "zeros"),
        (_layer(lambda: nn.LSTM(_F, 2)), "must map one tensor of 5 rows"),
        (_layer(lambda: nn.Bilinear(_F, _F, 2)), "must map one tensor of 5 rows"),
    ],
)
def test_what_opacus_gets_wrong_is_refused(build: Callable[[], nn.Module], message: str):
    model = build().eval()

    def losses() -> Tensor:
        if isinstance(getattr(model, "middle", None), nn.Bilinear):
            return model.middle(_features(_F), _features(_F)).sum(1)
        return model(_features(_F))

    with pytest.raises(PrivacyError, match=message):
        per_example_grads(model, _N, losses)
    assert _traces(model) == []


def test_missing_opacus_is_named(monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def no_opacus(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "opacus":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_opacus)
    model = Chain(nn.LayerNorm(_F), ClassifierHead(_F, _F)).eval()
    with pytest.raises(PrivacyError, match="of LayerNorm need Opacus; run: pip install opacus"):
        per_example_grads(model, _N, lambda: model(_features(_F)))
    model.middle.requires_grad_(False)
    assert per_example_grads(model, _N, lambda: model(_features(_F)))


@pytest.fixture
def normed() -> Chain:
    return Chain(_built(lambda: nn.LayerNorm(_F)), _built(lambda: ClassifierHead(_F, _F))).eval()


def test_one_client_may_have_parameters_of_its_own(normed: Chain):
    """As in local training, whose steps leave the model itself unchanged."""
    x = _features(_F)
    mine = {
        name: p.detach() + torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
        for name, p in normed.named_parameters()
    }
    given = {name: value.unsqueeze(0) for name, value in mine.items()}
    found = per_example_grads(normed, _N, lambda: normed(x), given)
    other = Chain(nn.LayerNorm(_F), ClassifierHead(_F, _F))
    other.load_state_dict(mine)
    _assert_equal(found, _row_by_row(other, lambda rows: other(x[rows]), _N))
    assert not torch.allclose(
        found["middle.weight"], per_example_grads(normed, _N, lambda: normed(x))["middle.weight"]
    )


def test_several_clients_at_once_are_refused(normed: Chain):
    config = DpSgdConfig(
        num_examples=_N, expected_batch_size=float(_N), l2_clip_norm=1.0, noise_multiplier=1.0
    )
    members = [DpSgd(normed, config, Keystream.insecure_from_seed(seed)) for seed in (0, 1)]
    stacked = {name: torch.stack([p.detach()] * 2) for name, p in normed.named_parameters()}
    batch = CohortBatch(
        rows=np.tile(np.arange(_N), 2),
        owners=np.repeat([0, 1], _N),
        losses=lambda: normed(torch.cat([_features(_F)] * 2)),
    )
    with pytest.raises(PrivacyError, match=r"federation\.clients_at_once = 1"):
        cohort_step(members, lambda samples: [batch], stacked)
    assert _traces(normed) == []
