"""Legend: N rows, T tokens, I inputs, O outputs, R rank."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedpeft.adapters.lora import LoraLinear
from fedpeft.dp.clipping import clip_and_sum
from fedpeft.dp.grad_sample import per_example_grads, row_parameters, trainable_parameters
from fedpeft.dp.grid import Grid
from fedpeft.errors import PrivacyError
from fedpeft.federated.adapted_model import AdaptedModel
from fedpeft.models.checkpointing import checkpoint_layers
from fedpeft.models.dataset import Batch, Dataset, collate
from fedpeft.models.tasks import ClassifierHead
from tests.dp.models import (
    ODD_VALUES,
    AdaptedHead,
    Given,
    bert,
    gpt2,
    llama,
    rows_of_tokens,
)

_CPU = torch.device("cpu")
_LENGTHS = (4, 11, 3, 7, 7, 5)
_MODELS = {"bert": bert, "llama": llama, "gpt2": gpt2}


@pytest.fixture(scope="module", params=_MODELS)
def model(request: pytest.FixtureRequest) -> AdaptedModel:
    build: Callable[[], AdaptedModel] = _MODELS[request.param]
    return build()


def _grads(model: AdaptedModel, batch: Batch) -> dict[str, Tensor]:
    task_model = model.task_model
    return per_example_grads(task_model, batch.num_rows, lambda: task_model.losses(batch))


def _autograd_alone(model: AdaptedModel, dataset: Dataset) -> dict[str, Tensor]:
    """Each row in a batch of its own, without padding, by plain autograd."""
    parameters = trainable_parameters(model.task_model)
    rows = []
    for row in range(len(dataset)):
        loss = model.task_model.losses(collate(dataset, [row], _CPU)).sum()
        rows.append(torch.autograd.grad(loss, list(parameters.values())))
    return {name: torch.stack(parts) for name, *parts in zip(parameters, *rows, strict=True)}


def _worst(grads: dict[str, Tensor], reference: dict[str, Tensor]) -> float:
    """Largest error of any row of any tensor, relative to that row's norm."""
    assert list(grads) == list(reference)
    worst = 0.0
    for name, expected in reference.items():
        error_N = (grads[name] - expected).flatten(1).norm(dim=1)
        norm_N = expected.flatten(1).norm(dim=1)
        assert norm_N.min() > 1e-5, f"{name} has no gradient that could be wrong"
        worst = max(worst, float((error_N / norm_N).max()))
    return worst


def test_equals_autograd_one_unpadded_row_at_a_time(model: AdaptedModel):
    """Lengths differ, so that this also says that padding does not matter. Float32: 2e-5."""
    dataset = rows_of_tokens(_LENGTHS)
    grads = _grads(model, collate(dataset, range(len(dataset)), _CPU))
    reference = _autograd_alone(model, dataset)
    kinds = {name.rpartition(".")[2] for name in grads}
    assert {"lora_a", "lora_b"} <= kinds
    assert _worst(grads, reference) < 2e-5
    # The comparison is decisive: gradients of other rows are far away.
    rolled = {name: grad.roll(1, 0) for name, grad in grads.items()}
    assert _worst(rolled, reference) > 0.1


def test_equals_autograd_in_float64():
    """What is left in float32 is rounding: in float64 the same comparison holds to 1e-13."""
    model = bert()
    model.task_model.double()
    dataset = rows_of_tokens(_LENGTHS)
    grads = _grads(model, collate(dataset, range(len(dataset)), _CPU))
    assert {"head.weight", "head.bias"} <= grads.keys()
    assert _worst(grads, _autograd_alone(model, dataset)) < 1e-13


def test_sum_over_rows_is_the_gradient_of_the_batch(model: AdaptedModel):
    dataset = rows_of_tokens(_LENGTHS)
    batch = collate(dataset, range(len(dataset)), _CPU)
    parameters = trainable_parameters(model.task_model)
    of_batch = torch.autograd.grad(model.task_model.losses(batch).sum(), list(parameters.values()))
    for grad, expected in zip(_grads(model, batch).values(), of_batch, strict=True):
        torch.testing.assert_close(grad.sum(0), expected, rtol=1e-4, atol=1e-6)


def test_padding_token_does_not_matter(model: AdaptedModel):
    dataset = rows_of_tokens(_LENGTHS)
    other = Dataset(input_ids=dataset.input_ids, targets=dataset.targets, pad_id=9)
    rows = range(len(dataset))
    grads, padded_otherwise = (_grads(model, collate(d, rows, _CPU)) for d in (dataset, other))
    assert _worst(padded_otherwise, grads) < 1e-6


def test_loss_of_a_row_depends_on_its_own_copies_only(model: AdaptedModel):
    """Exactly: this is what one example's bounded influence rests on."""
    dataset = rows_of_tokens(_LENGTHS)
    batch = collate(dataset, range(len(dataset)), _CPU)
    with row_parameters(model.task_model, batch.num_rows) as leaves:
        losses_N = model.task_model.losses(batch)
        for row in range(batch.num_rows):
            grads = torch.autograd.grad(losses_N[row], list(leaves.values()), retain_graph=True)
            for grad in grads:
                others = torch.arange(batch.num_rows) != row
                assert not grad[others].any()
                assert grad[row].any()


def test_values_are_those_of_the_shared_parameters(model: AdaptedModel):
    """Forward passes with and without copies agree, so that training sees the same losses."""
    batch = collate(rows_of_tokens(_LENGTHS), range(len(_LENGTHS)), _CPU)
    plain = model.task_model.losses(batch)
    with row_parameters(model.task_model, batch.num_rows):
        torch.testing.assert_close(model.task_model.losses(batch), plain, rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(ODD_VALUES), st.sampled_from(["input", *AdaptedHead.TRAINED]), st.data())
def test_odd_row_leaves_the_others_alone(value: float, place: str, data: st.DataObject):
    """Whatever stands in its input or in its copy of a parameter, bit for bit, clipped and summed.

    The value stands in one place; NaN and infinities spread over the row's own gradient only.
    """
    model, x_NTI, targets_N = AdaptedHead(), AdaptedHead.inputs(), torch.tensor([0, 1, 2, 1])
    given_rows = {
        name: p.detach().expand(4, *p.shape).clone()
        for name, p in trainable_parameters(model).items()
    }
    dimension = sum(rows[0].numel() for rows in given_rows.values())
    grid = Grid.for_clip_norm(0.5, dimension)

    def run() -> tuple[dict[str, Tensor], Tensor]:
        grads = per_example_grads(model, 4, lambda: model.losses(x_NTI, targets_N), given_rows)
        parts = [
            clip_and_sum({name: grad[n : n + 1] for name, grad in grads.items()}, grid)
            for n in range(4)
        ]
        contributions_N = torch.stack(
            [torch.cat([units.flatten() for units in part.units.values()]) for part in parts]
        )
        together = clip_and_sum(grads, grid).units.values()
        assert torch.equal(
            torch.cat([units.flatten() for units in together]), contributions_N.sum(0)
        )
        return grads, contributions_N

    clean, of_clean = run()
    row = data.draw(st.integers(0, 3))
    odd = x_NTI if place == "input" else given_rows[place]
    odd[row].view(-1)[data.draw(st.integers(0, odd[row].numel() - 1))] = value
    found, contributions = run()
    others = [n for n in range(4) if n != row]
    for name, grad in clean.items():
        assert torch.equal(found[name][others], grad[others])
    assert torch.equal(contributions[others], of_clean[others])
    assert torch.isfinite(contributions).all()
    if math.isnan(value):
        assert not contributions[row].any()
        assert of_clean[row].any()


def _opacus_grads(module: nn.Module, x: Tensor, losses: Callable[[Tensor], Tensor]) -> list[Tensor]:
    from opacus import GradSampleModule

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its own use of backward hooks
        wrapped = GradSampleModule(module, loss_reduction="sum")
        losses(wrapped(x)).sum().backward()
    return [parameter.grad_sample for parameter in module.parameters()]


def test_lora_equals_opacus():
    generator = torch.Generator().manual_seed(0)
    lora_a_RI = torch.randn(3, 6, generator=generator)
    lora_b_OR = torch.randn(4, 3, generator=generator)
    x_NTI = torch.randn(5, 7, 6, generator=generator)

    def losses(y_NTO: Tensor) -> Tensor:
        return y_NTO.sin().sum((1, 2))

    base = nn.Linear(6, 4).requires_grad_(False)
    nn.init.zeros_(base.weight)
    nn.init.zeros_(base.bias)
    ours = LoraLinear(base, lora_a_RI, 1.0).requires_grad_(False)
    ours.lora_a.requires_grad_(True)
    ours.lora_b.requires_grad_(True)
    theirs = nn.Sequential(nn.Linear(6, 3, bias=False), nn.Linear(3, 4, bias=False))
    with torch.no_grad():
        ours.lora_b.copy_(lora_b_OR)
        theirs[0].weight.copy_(lora_a_RI)
        theirs[1].weight.copy_(lora_b_OR)
    grads = per_example_grads(ours, 5, lambda: losses(ours(x_NTI)))
    of_a, of_b = _opacus_grads(theirs, x_NTI, losses)
    torch.testing.assert_close(grads["lora_a"], of_a, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grads["lora_b"], of_b, rtol=1e-5, atol=1e-6)


def test_head_equals_opacus():
    generator = torch.Generator().manual_seed(0)
    head, linear = ClassifierHead(6, 3), nn.Linear(6, 3)
    with torch.no_grad():
        for parameter, other in zip(head.parameters(), linear.parameters(), strict=True):
            parameter.normal_(generator=generator)
            other.copy_(parameter)
    x_NH = torch.randn(5, 6, generator=generator)
    targets_N = torch.tensor([0, 1, 2, 1, 0])

    def losses(logits_NC: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits_NC, targets_N, reduction="none")

    grads = per_example_grads(head, 5, lambda: losses(head(x_NH)))
    for grad, expected in zip(grads.values(), _opacus_grads(linear, x_NH, losses), strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-6)


def test_unused_parameter_has_gradient_zero():
    model = Given(4)
    nn.init.ones_(model.right.weight)
    x_ND = torch.ones(3, 4)
    grads = per_example_grads(model, 3, lambda: model.left(x_ND[:, :2]))
    assert grads["left.weight"].tolist() == [[1, 1]] * 3
    assert grads["right.weight"].tolist() == [[0, 0]] * 3


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.SyncBatchNorm])
@pytest.mark.parametrize("trained", [True, False])
def test_batch_norm_is_refused(norm: type[nn.BatchNorm1d], trained: bool):
    """Also a frozen one: in training mode it mixes rows without any parameter."""
    model = nn.Sequential(ClassifierHead(3, 3), norm(3))
    model[1].requires_grad_(trained).train(trained)
    with pytest.raises(PrivacyError, match="batch norm"):
        per_example_grads(model, 2, lambda: torch.ones(2))


@pytest.mark.parametrize("shape", [(), (1,), (4,), (3, 1)])
def test_losses_of_wrong_shape_are_refused(shape: tuple[int, ...]):
    head = ClassifierHead(3, 1)
    with pytest.raises(PrivacyError, match="one loss a row"):
        per_example_grads(head, 3, lambda: head(torch.ones(3, 3)).sum() * torch.ones(shape))
    assert head.row_parameters is None


def test_exception_in_the_forward_pass_leaves_no_copies_behind(model: AdaptedModel):
    def fail() -> Tensor:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        per_example_grads(model.task_model, 2, fail)
    copies = [getattr(module, "row_parameters", None) for module in model.task_model.modules()]
    assert copies == [None] * len(copies)
    batch = collate(rows_of_tokens([3, 4]), [0, 1], _CPU)
    assert torch.isfinite(model.task_model.losses(batch)).all()


def test_copies_take_no_memory():
    head = ClassifierHead(3, 2)
    with row_parameters(head, 1000) as leaves:
        for name, leaf in leaves.items():
            assert leaf.untyped_storage().data_ptr() == head.get_parameter(name).data_ptr()


@pytest.mark.parametrize("checkpointed", [False, True], ids=["plain", "checkpointed"])
def test_nothing_is_kept_below_the_lowest_adapted_layer(checkpointed: bool):
    """Backward stops there: what lies below has no graph, and its activations can go."""
    model = bert()
    model.set_trainable(["lora_b"])
    base = model.task_model.base
    base.encoder.layer[0].requires_grad_(False)
    if checkpointed:
        checkpoint_layers(base)
    graphs: dict[str, bool] = {}
    for name, module in base.named_modules():
        module.register_forward_hook(
            lambda module, x, y, name=name: graphs.update({name: _needs_graph(y)})
        )
    dataset = rows_of_tokens(_LENGTHS)
    batch = collate(dataset, range(len(dataset)), _CPU)
    per_example_grads(model.task_model, 6, lambda: model.task_model.losses(batch))
    below = [name for name in graphs if name.startswith(("embeddings", "encoder.layer.0"))]
    assert len(below) > 10
    assert not any(graphs[name] for name in below)
    adapted = "encoder.layer.1.attention.self"
    # Of the two adapted maps the key between them is a frozen one: it has no graph either.
    assert [graphs[f"{adapted}.{name}"] for name in ("query", "key", "value")] == [1, 0, 1]
    assert graphs["encoder.layer.1"]


def _needs_graph(output: Any) -> bool:
    tensors = [output] if isinstance(output, Tensor) else list(output)
    return any(isinstance(tensor, Tensor) and tensor.requires_grad for tensor in tensors)
