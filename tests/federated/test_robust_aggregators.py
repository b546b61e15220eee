"""Every aggregator with every combiner: what is combined is what the aggregator goes on with."""

import itertools
import math

import pytest
import torch

from fedpeft.errors import AdapterError
from fedpeft.federated.aggregators import AGGREGATORS, Aggregator
from fedpeft.federated.aggregators.combiners import Combiner
from fedpeft.federated.aggregators.updates import check_updates
from tests.federated.robust_updates import COMBINERS, COUNT_CLIENTS
from tests.federated.test_aggregators import HEAD, SHAPES, product, relative, start, updates_for

PAIRS = list(itertools.product(sorted(AGGREGATORS), sorted(COMBINERS)))
WEIGHTS = [1.0] * 6


@pytest.fixture(params=PAIRS, ids=" of ".join)
def pair(request: pytest.FixtureRequest) -> tuple[Aggregator, Combiner]:
    aggregator, combiner = request.param
    return AGGREGATORS[aggregator], COMBINERS[combiner]


def test_the_adapter_is_made_of_what_was_combined(pair: tuple[Aggregator, Combiner]) -> None:
    aggregator, combiner = pair
    tensors = start()
    updates = updates_for(aggregator, tensors, 6)
    combined = combiner.combine(
        check_updates(tensors, updates, WEIGHTS, aggregator.trained_factors)
    )
    found = aggregator.aggregate(tensors, updates, WEIGHTS, combiner)
    for module in SHAPES:
        expected = product({**tensors, **combined.tensors}, module)
        assert relative(product(found.tensors, module), expected) < 1e-6
    for name in HEAD:
        assert torch.equal(found.tensors[name], combined.tensors[name])
    assert found.tensors.keys() == tensors.keys()
    assert found.kept == combined.kept
    assert combined.diagnostics.items() <= found.diagnostics.items()


def test_a_frozen_head_stays(pair: tuple[Aggregator, Combiner]) -> None:
    aggregator, combiner = pair
    tensors = start()
    updates = updates_for(aggregator, tensors, 6, head=False)
    found = aggregator.aggregate(tensors, updates, WEIGHTS, combiner).tensors
    assert all(torch.equal(found[name], tensors[name]) for name in HEAD)


@pytest.mark.parametrize("damage", ["nan", "too large for float32", "missing", "shape"])
def test_one_damaged_update_is_refused(pair: tuple[Aggregator, Combiner], damage: str) -> None:
    """None is robust to what is no update at all: it is refused by name, never trimmed away."""
    aggregator, combiner = pair
    tensors = start()
    updates = updates_for(aggregator, tensors, 6)
    if damage == "nan":
        updates[4]["head.bias"][0] = math.nan
    elif damage == "too large for float32":
        updates[4]["head.bias"] = torch.full((2,), 1e39, dtype=torch.float64)
    elif damage == "missing":
        del updates[4]["head.bias"]
    else:
        updates[4]["head.bias"] = torch.zeros(3)
    with pytest.raises(AdapterError, match=r"head\.bias"):
        aggregator.aggregate(tensors, updates, WEIGHTS, combiner)


def test_too_few_updates_and_unequal_weights_are_refused(pair: tuple[Aggregator, Combiner]) -> None:
    aggregator, combiner = pair
    tensors = start()
    updates = updates_for(aggregator, tensors, 6)
    if combiner.name in COUNT_CLIENTS:
        with pytest.raises(AdapterError, match="equal weights"):
            aggregator.aggregate(tensors, updates, [*WEIGHTS[1:], 2.0], combiner)
    few = combiner.min_num_updates - 1
    with pytest.raises(AdapterError, match="needs at least" if few else "expected a weight"):
        aggregator.aggregate(tensors, updates[:few], WEIGHTS[:few], combiner)


@pytest.mark.parametrize("name", sorted(AGGREGATORS))
def test_without_a_combiner_it_is_the_weighted_mean(name: str) -> None:
    aggregator, tensors = AGGREGATORS[name], start()
    updates = updates_for(aggregator, tensors, 3)
    weights = [0.5, 2.0, 1.0]
    found = aggregator.aggregate(tensors, updates, weights)
    named = aggregator.aggregate(tensors, updates, weights, COMBINERS["weighted-mean"])
    assert all(torch.equal(found.tensors[n], named.tensors[n]) for n in tensors)
    assert found.kept == ()


def test_fedavg_knows_its_error_only_of_means() -> None:
    """Of updates as they were sent: of a median there is no mean of products to compare with."""
    fedavg, tensors = AGGREGATORS["fedavg"], start()
    updates = updates_for(fedavg, tensors, 6)
    for name, combiner in COMBINERS.items():
        found = fedavg.aggregate(tensors, updates, WEIGHTS, combiner).diagnostics
        assert ("aggregation_error" in found) == (name in ("weighted-mean", "multi-krum")), name


def test_fedavg_error_of_krum_is_that_of_the_selected() -> None:
    fedavg, tensors, krum = AGGREGATORS["fedavg"], start(), COMBINERS["multi-krum"]
    updates = updates_for(fedavg, tensors, 6)
    updates[2] = {name: 1e30 * tensor for name, tensor in updates[2].items()}
    found = fedavg.aggregate(tensors, updates, WEIGHTS, krum)
    selected = [u for u, kept in zip(updates, found.kept, strict=True) if kept]
    alone = fedavg.aggregate(tensors, selected, [1.0] * len(selected)).diagnostics
    assert len(selected) == 3
    assert found.diagnostics["aggregation_error"] == pytest.approx(alone["aggregation_error"])
