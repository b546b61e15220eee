"""One contract suite for every aggregator, and what each promises on its own."""

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from fedpeft.adapters.lora import lora_pairs
from fedpeft.errors import AdapterError
from fedpeft.federated.aggregators import AGGREGATORS, Aggregator
from fedpeft.federated.aggregators.updates import normalised
from tests.tiny_models import equal_tensors

RANK = 3
SHAPES = {"base.query": (7, 5), "base.value": (4, 9)}
HEAD = {"head.weight": (2, 6), "head.bias": (2,)}
WEIGHTS = (0.5, 2.0, 1.0)


@pytest.fixture(params=sorted(AGGREGATORS))
def aggregator(request: pytest.FixtureRequest) -> Aggregator:
    return AGGREGATORS[request.param]


def start(seed: int = 0) -> dict[str, Tensor]:
    """An adapter in the middle of a run, with a head."""
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for module, (d_out, d_in) in SHAPES.items():
        tensors[f"{module}.lora_a"] = torch.randn(RANK, d_in, generator=draw)
        tensors[f"{module}.lora_b"] = torch.randn(d_out, RANK, generator=draw)
    return tensors | {n: torch.randn(shape, generator=draw) for n, shape in HEAD.items()}


def updates_for(
    aggregator: Aggregator, tensors: Mapping[str, Tensor], count: int, *, head: bool = True
) -> list[dict[str, Tensor]]:
    """What `count` clients would send, each its own numbers."""
    sent = [n for n in tensors if n.endswith(aggregator.trained_factors) or (head and n in HEAD)]
    draw = torch.Generator().manual_seed(17)
    return [
        {n: tensors[n] + torch.randn(tensors[n].shape, generator=draw) for n in sent}
        for _ in range(count)
    ]


def product(tensors: Mapping[str, Tensor], module: str) -> Tensor:
    a, b = lora_pairs(tensors)[module]
    return b.double() @ a.double()


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def test_names_are_keys() -> None:
    assert {name: a.name for name, a in AGGREGATORS.items()} == {n: n for n in AGGREGATORS}


@pytest.mark.parametrize("head", [True, False])
def test_names_shapes_and_dtypes_are_preserved(aggregator: Aggregator, head: bool) -> None:
    tensors = start()
    found = aggregator.aggregate(
        tensors, updates_for(aggregator, tensors, 3, head=head), WEIGHTS
    ).tensors
    assert {n: (t.shape, t.dtype) for n, t in found.items()} == {
        n: (t.shape, t.dtype) for n, t in tensors.items()
    }
    assert all(torch.isfinite(t).all() for t in found.values())


def test_the_inputs_are_not_modified(aggregator: Aggregator) -> None:
    tensors = start()
    updates = updates_for(aggregator, tensors, 3)
    before, sent = copied(tensors), [copied(update) for update in updates]
    aggregator.aggregate(tensors, updates, WEIGHTS)
    assert equal_tensors(tensors, before)
    assert all(equal_tensors(u, s) for u, s in zip(updates, sent, strict=True))


def test_the_head_is_the_weighted_mean(aggregator: Aggregator) -> None:
    tensors = start()
    updates = updates_for(aggregator, tensors, 3)
    found = aggregator.aggregate(tensors, updates, WEIGHTS).tensors
    for name in HEAD:
        expected = sum(w * u[name].double() for w, u in zip(WEIGHTS, updates, strict=True)) / 3.5
        assert relative(found[name], expected) < 1e-6


def test_a_frozen_head_stays(aggregator: Aggregator) -> None:
    tensors = start()
    updates = updates_for(aggregator, tensors, 3, head=False)
    found = aggregator.aggregate(tensors, updates, WEIGHTS).tensors
    assert all(torch.equal(found[name], tensors[name]) for name in HEAD)


@pytest.mark.parametrize("scale", [1e-200, 1e-3, 1e6, 1e300])
def test_only_the_ratio_of_the_weights_counts(aggregator: Aggregator, scale: float) -> None:
    tensors = start()
    updates = updates_for(aggregator, tensors, 3)
    expected = aggregator.aggregate(tensors, updates, WEIGHTS).tensors
    weights = [scale * weight for weight in WEIGHTS]
    found = aggregator.aggregate(tensors, updates, weights).tensors
    for module in SHAPES:
        assert relative(product(found, module), product(expected, module)) < 1e-6


@pytest.mark.parametrize("weight", [1.0, 0.3, 17.0])
def test_a_single_client_is_the_next_adapter(aggregator: Aggregator, weight: float) -> None:
    tensors = start()
    updates = updates_for(aggregator, tensors, 1)
    expected = tensors | updates[0]
    aggregate = aggregator.aggregate(tensors, updates, [weight])
    for module in SHAPES:
        assert relative(product(aggregate.tensors, module), product(expected, module)) < 1e-6
    assert all(torch.equal(aggregate.tensors[name], expected[name]) for name in HEAD)


def test_the_order_of_the_clients_does_not_matter(aggregator: Aggregator) -> None:
    tensors = start()
    updates = updates_for(aggregator, tensors, 3)
    expected = aggregator.aggregate(tensors, updates, WEIGHTS).tensors
    for order in ((1, 2, 0), (2, 1, 0)):
        found = aggregator.aggregate(
            tensors, [updates[i] for i in order], [WEIGHTS[i] for i in order]
        ).tensors
        for module in SHAPES:
            assert relative(product(found, module), product(expected, module)) < 1e-6
        assert all(torch.allclose(found[name], expected[name], rtol=1e-6) for name in HEAD)


def test_clients_that_changed_nothing_change_nothing(aggregator: Aggregator) -> None:
    tensors = start()
    untouched = [{n: tensors[n] for n in u} for u in updates_for(aggregator, tensors, 3)]
    found = aggregator.aggregate(tensors, untouched, WEIGHTS).tensors
    for module in SHAPES:
        assert relative(product(found, module), product(tensors, module)) < 1e-6


def test_zero_updates_do_not_crash(aggregator: Aggregator) -> None:
    tensors = {n: torch.zeros_like(t) if "lora_b" in n else t for n, t in start().items()}
    zeros = [
        {n: t if "lora_a" in n else torch.zeros_like(t) for n, t in update.items()}
        for update in updates_for(aggregator, tensors, 2)
    ]
    aggregate = aggregator.aggregate(tensors, zeros, [1, 1])
    assert all(torch.isfinite(t).all() for t in aggregate.tensors.values())
    assert all(math.isfinite(value) for value in aggregate.diagnostics.values())
    for module in SHAPES:
        assert not product(aggregate.tensors, module).any()


@pytest.mark.parametrize(
    "weights",
    [[], [1.0], [1.0, 1.0, 1.0], [1.0, 0.0], [1.0, -1.0], [1.0, math.nan], [1.0, math.inf]],
    ids=str,
)
def test_wrong_weights_are_refused(aggregator: Aggregator, weights: list[float]) -> None:
    tensors = start()
    with pytest.raises(AdapterError, match="weight"):
        aggregator.aggregate(tensors, updates_for(aggregator, tensors, 2), weights)


def test_an_empty_cohort_is_refused(aggregator: Aggregator) -> None:
    with pytest.raises(AdapterError, match="expected a weight"):
        aggregator.aggregate(start(), [], [])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["base.value.lora_b", "head.bias"])
def test_one_value_that_is_not_finite_is_refused(
    aggregator: Aggregator, name: str, value: float
) -> None:
    tensors = start()
    updates = updates_for(aggregator, tensors, 2)
    updates[1][name].view(-1)[-1] = value
    with pytest.raises(AdapterError, match=rf"{name}: an update holds NaN or infinite"):
        aggregator.aggregate(tensors, updates, [1, 1])


@pytest.mark.parametrize("everyone", [True, False], ids=["all clients", "one client"])
@pytest.mark.parametrize("damage", ["missing", "unknown", "shape", "head half"])
def test_updates_that_do_not_fit_the_adapter_are_refused(
    aggregator: Aggregator, damage: str, everyone: bool
) -> None:
    """Also where the whole cohort agrees on them."""
    tensors = start()
    updates = updates_for(aggregator, tensors, 2)
    for update in updates if everyone else updates[1:]:
        if damage == "missing":
            del update["base.value.lora_b"]
        elif damage == "unknown":
            update["base.nowhere.lora_b"] = torch.ones(2, RANK)
        elif damage == "shape":
            update["base.value.lora_b"] = update["base.value.lora_b"][:1]
        else:
            del update["head.bias"]
    with pytest.raises(AdapterError):
        aggregator.aggregate(tensors, updates, [1, 1])


@pytest.mark.parametrize("name", ["fedsvd", "ffa-lora", "frozen-orthonormal"])
def test_no_client_can_replace_a_factor_that_is_not_trained(name: str) -> None:
    tensors = start()
    updates = updates_for(AGGREGATORS[name], tensors, 1)
    updates[0]["base.value.lora_a"] = torch.ones_like(tensors["base.value.lora_a"])
    with pytest.raises(AdapterError, match=r"unknown: \['base.value.lora_a'\]"):
        AGGREGATORS[name].aggregate(tensors, updates, [1])


def test_normalised_weights_sum_to_one() -> None:
    assert normalised([2, 6], 2) == [0.25, 0.75]
    assert sum(normalised([0.1] * 10, 10)) == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize("name", ["fedsvd", "ffa-lora", "frozen-orthonormal"])
@pytest.mark.parametrize("scaling", [1.0, 0.25, 8.0])
def test_the_aggregate_is_the_mean_of_the_products(name: str, scaling: float) -> None:
    """Averaging B under a common A is exact, whatever alpha / r; 1e-6 relative in float32."""
    tensors = start()
    updates = updates_for(AGGREGATORS[name], tensors, 3)
    found = AGGREGATORS[name].aggregate(tensors, updates, WEIGHTS).tensors
    for module in SHAPES:
        shares = [w / sum(WEIGHTS) for w in WEIGHTS]
        expected = sum(
            share * scaling * product(tensors | update, module)
            for share, update in zip(shares, updates, strict=True)
        )
        assert relative(scaling * product(found, module), expected) < 1e-6


@pytest.mark.parametrize("name", ["fedsvd", "frozen-orthonormal"])
def test_the_next_a_is_orthonormal(name: str) -> None:
    tensors = start()
    updates = updates_for(AGGREGATORS[name], tensors, 3)
    found = AGGREGATORS[name].aggregate(tensors, updates, WEIGHTS).tensors
    for a, _ in lora_pairs(found).values():
        assert (a.double() @ a.double().T - torch.eye(RANK)).abs().max() < 1e-6


def test_ffa_never_touches_a_and_orthonormal_rows_stay_frozen() -> None:
    tensors = start()
    for name in ("ffa-lora", "frozen-orthonormal"):
        aggregator = AGGREGATORS[name]
        for module, (a, _) in lora_pairs(tensors).items():
            if name == "frozen-orthonormal":
                tensors[f"{module}.lora_a"] = torch.linalg.qr(a.T).Q.T.contiguous()
        found = aggregator.aggregate(tensors, updates_for(aggregator, tensors, 3), WEIGHTS).tensors
        for module in SHAPES:
            assert torch.equal(found[f"{module}.lora_a"], tensors[f"{module}.lora_a"])


def brute_force_error(
    tensors: Mapping[str, Tensor], updates: list[dict[str, Tensor]], weights: list[float]
) -> float:
    """Of all d_out x d_in products together."""
    shares = [weight / sum(weights) for weight in weights]
    error = reference = 0.0
    for module in SHAPES:
        exact = sum(s * product(u, module) for s, u in zip(shares, updates, strict=True))
        mean_a, mean_b = (
            sum(s * u[f"{module}.{f}"].double() for s, u in zip(shares, updates, strict=True))
            for f in ("lora_a", "lora_b")
        )
        error += float((mean_b @ mean_a - exact).square().sum())
        reference += float(exact.square().sum())
    return math.sqrt(error / reference)


@pytest.mark.parametrize("weights", [[1.0, 1.0], [0.2, 5.0], [1.0, 2.0, 3.0, 4.0]], ids=str)
def test_fedavg_reports_its_own_error(weights: list[float]) -> None:
    fedavg = AGGREGATORS["fedavg"]
    tensors = start()
    updates = updates_for(fedavg, tensors, len(weights))
    found = fedavg.aggregate(tensors, updates, weights).diagnostics["aggregation_error"]
    assert found == pytest.approx(brute_force_error(tensors, updates, weights), rel=1e-5)
    assert found > 0.01


def test_fedavg_has_no_error_with_one_client_or_equal_ones() -> None:
    fedavg = AGGREGATORS["fedavg"]
    tensors = start()
    [update] = updates_for(fedavg, tensors, 1)
    for clients in (1, 3):
        aggregate = fedavg.aggregate(tensors, [update] * clients, [1.0] * clients)
        # The root of float64 rounding.
        assert aggregate.diagnostics["aggregation_error"] < 1e-6


def test_only_fedavg_is_inexact() -> None:
    for name, aggregator in AGGREGATORS.items():
        tensors = start()
        diagnostics = aggregator.aggregate(
            tensors, updates_for(aggregator, tensors, 3), WEIGHTS
        ).diagnostics
        assert list(diagnostics) == (["aggregation_error"] if name == "fedavg" else [])
