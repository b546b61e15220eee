"""What malicious clients can do to each combiner, and how many of them it takes."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from fedpeft.federated.aggregators.combiners import (
    Combiner,
    Median,
    MultiKrum,
    NormBound,
    TrimmedMean,
    WeightedMean,
)
from tests.federated.robust_updates import NUM_VALUES, flat, round_of, vectors

DIRECTION = torch.linspace(1, 2, NUM_VALUES)


def honest(count: int, seed: int = 0) -> Tensor:
    """Clients that learnt the same, each with its own noise."""
    return DIRECTION + 0.3 * vectors(count, seed)


def attacked(kind: str, count: int, seed: int = 0) -> Tensor:
    """What `count` attackers send beside honest clients whose mean they know."""
    lie = {
        "reversed": -10 * DIRECTION,
        "huge": 1e6 * DIRECTION,
        "largest": torch.full_like(DIRECTION, -3e38),
        "one coordinate": DIRECTION.index_fill(0, torch.tensor([3]), 1e9),
    }[kind]
    return lie + 0.01 * vectors(count, seed + 100)


def result(combiner: Combiner, *sent: Tensor) -> Tensor:
    return flat(combiner.combine(round_of(torch.cat(sent))).tensors)


def outside(found: Tensor, honest_rows: Tensor) -> float:
    """How far the result lies outside the honest clients' range, in spreads of theirs."""
    rows = honest_rows.double()
    low, high = rows.min(0).values, rows.max(0).values
    beyond = torch.maximum(found - high, low - found).clamp(min=0)
    return float((beyond / (high - low)).max())


KINDS = ("reversed", "huge", "largest", "one coordinate")
WITHIN_RANGE = [
    (Median(), 6, 1),
    (Median(), 5, 2),
    (Median(), 9, 4),
    (TrimmedMean(num_byzantine=1), 6, 1),
    (TrimmedMean(num_byzantine=2), 5, 2),
    (TrimmedMean(num_byzantine=3), 9, 3),
    (MultiKrum(num_byzantine=1), 6, 1),
    (MultiKrum(num_byzantine=1), 5, 1),
    (MultiKrum(num_byzantine=3), 9, 3),
]


def names(value: object) -> str:
    return str(getattr(value, "name", value))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("combiner", "num_clients", "num_attackers"), WITHIN_RANGE, ids=names)
@pytest.mark.parametrize("seed", range(3))
def test_few_attackers_cannot_leave_the_honest_clients_range(
    combiner: Combiner, num_clients: int, num_attackers: int, kind: str, seed: int
) -> None:
    good = honest(num_clients - num_attackers, seed)
    bad = attacked(kind, num_attackers, seed)
    assert outside(result(WeightedMean(), good, bad), good) > 2, "that would be no attack"
    # A mean of float32 values is rounded to float32.
    assert outside(result(combiner, good, bad), good) < 1e-6


def test_whom_they_leave_out() -> None:
    sent = torch.cat([honest(5), attacked("reversed", 1)])
    assert MultiKrum(num_byzantine=1).combine(round_of(sent)).kept[-1] == 0
    assert TrimmedMean(num_byzantine=1).combine(round_of(sent)).kept[-1] == 0
    assert Median().combine(round_of(sent)).kept[-1] == 0
    assert NormBound(max_update_norm=10).combine(round_of(sent)).kept[-1] < 0.15


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shares", [(1.0,) * 6, (1.0, 1.0, 1.0, 1.0, 1.0, 4.0)], ids=str)
def test_under_a_norm_bound_an_attacker_moves_the_mean_by_its_share_of_the_bound(
    kind: str, shares: Sequence[float]
) -> None:
    good, bad, bound = honest(5), attacked(kind, 1), 12.0
    updates = round_of(torch.cat([good, bad]), weights=list(shares))
    found = flat(NormBound(max_update_norm=bound).combine(updates).tensors)
    assert (good.norm(dim=1) < bound).all(), "the honest clients would be clipped as well"
    share = shares[-1] / sum(shares)
    without = (1 - share) * good.double().mean(0)
    assert float((found - without).norm()) == pytest.approx(share * bound, rel=1e-6)


# --- where each stops helping


def test_a_single_attacker_has_the_weighted_mean_say_whatever_it_likes() -> None:
    good, wanted = honest(5), -7 * DIRECTION
    lie = 6 * wanted - good.sum(0)
    assert torch.allclose(result(WeightedMean(), good, lie[None]), wanted.double(), atol=1e-4)


def test_under_a_norm_bound_a_majority_sets_the_direction_though_not_the_length() -> None:
    good, bad, bound = honest(2), attacked("reversed", 4), 12.0
    found = result(NormBound(max_update_norm=bound), good, bad)
    assert float(found @ DIRECTION.double()) < 0
    assert float(found.norm()) < bound


@pytest.mark.parametrize(
    ("combiner", "num_clients", "too_many"),
    [
        (Median(), 5, 3),
        (Median(), 6, 3),  # the mean of the two middle values: half is too many already
        (Median(), 2, 1),
        (TrimmedMean(num_byzantine=1), 6, 2),
        (TrimmedMean(num_byzantine=2), 9, 3),
    ],
    ids=names,
)
def test_one_attacker_too_many_breaks_a_median_and_a_trimmed_mean(
    combiner: Combiner, num_clients: int, too_many: int
) -> None:
    good = honest(num_clients - too_many)
    bad = attacked("huge", too_many)
    assert float(result(combiner, good, bad).norm()) > 1e4 * float(good.norm(dim=1).max())


@pytest.mark.parametrize("num_byzantine", [1, 2, 3])
def test_two_too_many_who_agree_break_krum_from_any_distance(num_byzantine: int) -> None:
    """f + 2 have f + 1 neighbours at distance zero: all that count among 2f + 3 clients."""
    num_clients = 2 * num_byzantine + 3
    krum = MultiKrum(num_byzantine=num_byzantine)
    lie = 1e6 * DIRECTION

    def with_liars(count: int) -> tuple[Tensor, Tensor]:
        good = honest(num_clients - count)
        return good, result(krum, good, lie.expand(count, -1))

    good, found = with_liars(num_byzantine + 1)
    assert outside(found, good) < 1e-6
    good, found = with_liars(num_byzantine + 2)
    assert torch.allclose(found, lie.double())


@pytest.mark.parametrize("seed", range(5))
def test_one_too_many_who_agree_take_krums_seats_from_within_the_spread(seed: int) -> None:
    """Nearer to the honest clients than these are to each other, no distance tells them apart."""
    good = honest(3, seed)
    reference = good.mean(0)
    spread = float(torch.pdist(good).mean())
    lie = reference - 0.5 * spread * DIRECTION / DIRECTION.norm()
    found = MultiKrum(num_byzantine=1).combine(round_of(torch.cat([good, lie.expand(2, -1)])))
    assert found.kept == (0.0, 0.0, 0.0, 1.0, 1.0)
    assert torch.allclose(flat(found.tensors), lie.double())


def test_a_lie_within_the_spread_passes_all_of_them() -> None:
    """A little is enough (Baruch et al., 2019): noise hides what is not larger than itself."""
    good = honest(5)
    lie = good.mean(0) - good.std(0)
    for combiner in (Median(), TrimmedMean(num_byzantine=1), MultiKrum(num_byzantine=1)):
        found = combiner.combine(round_of(torch.cat([good, lie[None]])))
        assert found.kept[-1] > 0, combiner.name
        without = combiner.combine(round_of(good))
        assert float((flat(found.tensors) - flat(without.tensors)) @ DIRECTION.double()) < 0
