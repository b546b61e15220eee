import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft.dp.accounting import epsilon
from fedpeft.dp.config import PrivacyConfig
from fedpeft.dp.grid import Grid
from fedpeft.errors import BudgetError, ConfigError, DataError, PrivacyError
from fedpeft.federated.assembly import cross_talk
from fedpeft.federated.config import FederationConfig
from fedpeft.federated.plan import RunPlan, plan_run
from fedpeft.models.model_config import ModelConfig

SIZES = {"bank": 40, "clinic": 90, "shop": 60, "school": 50}
OFF = PrivacyConfig(enabled=False)
PRIVATE = PrivacyConfig(target_epsilon=3.0, delta=1e-3)


def federation(**settings: object) -> FederationConfig:
    return FederationConfig.model_validate(
        {"num_rounds": 6, "local_steps": 2, "expected_batch_size": 8, **settings}
    )


def noise(plan: RunPlan) -> dict[str, float]:
    return {c: p.dp.noise_multiplier for c, p in plan.clients.items() if p.dp is not None}


def test_cohorts_are_a_function_of_the_seed() -> None:
    plans = [plan_run(SIZES, federation(clients_per_round=2, seed=s), OFF) for s in (1, 1, 2)]
    assert plans[0].cohorts == plans[1].cohorts
    assert plans[0].cohorts != plans[2].cohorts
    shuffled = dict(reversed(SIZES.items()))
    assert plan_run(shuffled, federation(clients_per_round=2, seed=1), OFF) == plans[0]


@given(seed=st.integers(0, 2**40), size=st.integers(1, 4), num_rounds=st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_cohorts_have_their_size_and_no_client_twice(seed: int, size: int, num_rounds: int) -> None:
    config = federation(clients_per_round=size, seed=seed, num_rounds=num_rounds)
    plan = plan_run(SIZES, config, OFF)
    assert len(plan.cohorts) == num_rounds
    assert all(len(cohort) == size == len(set(cohort)) for cohort in plan.cohorts)
    counted = Counter(client for cohort in plan.cohorts for client in cohort)
    for client_id, client in plan.clients.items():
        assert client.num_rounds == counted[client_id]
        assert client.num_steps == 2 * counted[client_id]


def test_more_rounds_never_change_the_first_cohorts() -> None:
    short = plan_run(SIZES, federation(clients_per_round=2), OFF)
    long = plan_run(SIZES, federation(clients_per_round=2, num_rounds=9), OFF)
    assert long.cohorts[:6] == short.cohorts


def test_every_client_is_drawn_about_equally_often() -> None:
    plan = plan_run(SIZES, federation(clients_per_round=2, num_rounds=400), OFF)
    # 200 expected each, binomial standard deviation 10.
    assert all(abs(client.num_rounds - 200) < 50 for client in plan.clients.values())


def test_everyone_takes_part_by_default() -> None:
    assert set(plan_run(SIZES, federation(), OFF).cohorts) == {tuple(sorted(SIZES))}


def test_each_clients_noise_fits_its_own_rounds() -> None:
    """The planned events cost at most the budget, and more than 97 % of it."""
    plan = plan_run(SIZES, federation(clients_per_round=2), PRIVATE)
    assert len({client.num_rounds for client in plan.clients.values()}) > 1
    for client in plan.clients.values():
        assert client.dp is not None
        once = [client.dp.event(client.num_steps)]
        by_round = [client.dp.event(2)] * client.num_rounds
        for events in (once, by_round):
            assert 0.97 * 3.0 < epsilon(events, 1e-3) <= 3.0
        assert epsilon([*by_round, client.dp.event(2)], 1e-3) > 3.0, "one round more is too much"
        assert client.dp.num_examples == client.num_examples
        assert client.dp.l2_clip_norm == PRIVATE.l2_clip_norm


def test_a_fixed_batch_size_gives_smaller_clients_more_noise() -> None:
    sigma = noise(plan_run(SIZES, federation(), PRIVATE))
    assert sigma["bank"] > sigma["school"] > sigma["shop"] > sigma["clinic"]
    clients = plan_run(SIZES, federation(), PRIVATE).clients
    assert all(client.expected_batch_size == 8 for client in clients.values())
    assert clients["bank"].sampling_prob == 0.2


def test_a_fixed_probability_gives_everyone_the_same_noise() -> None:
    plan = plan_run(SIZES, federation(expected_batch_size=None, sampling_prob=0.2), PRIVATE)
    assert len(set(noise(plan).values())) == 1
    assert plan.clients["clinic"].expected_batch_size == pytest.approx(18)
    assert plan.clients["clinic"].sampling_prob == pytest.approx(0.2, rel=1e-15)


def test_a_batch_larger_than_a_client_takes_all_of_it() -> None:
    plan = plan_run({"a": 3, "b": 100}, federation(expected_batch_size=16), OFF)
    assert plan.clients["a"].sampling_prob == 1
    assert plan.clients["b"].sampling_prob == 0.16


def test_a_client_that_is_never_drawn_has_no_rounds() -> None:
    plan = plan_run(SIZES, federation(clients_per_round=1, num_rounds=1), PRIVATE)
    idle = [client for client in plan.clients.values() if client.num_rounds == 0]
    assert len(idle) == 3
    assert all(client.dp is not None and client.num_steps == 0 for client in idle)


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [("examples", {c: n / 240 for c, n in SIZES.items()}), ("uniform", dict.fromkeys(SIZES, 0.25))],
)
def test_weights_are_public_and_sum_to_one(weighting: str, expected: dict[str, float]) -> None:
    plan = plan_run(SIZES, federation(weighting=weighting), OFF)
    assert {c: p.weight for c, p in plan.clients.items()} == pytest.approx(expected)
    assert math.fsum(p.weight for p in plan.clients.values()) == pytest.approx(1, abs=1e-12)


def test_delta_must_lie_below_one_over_n_of_the_largest_client() -> None:
    at_limit = PrivacyConfig(target_epsilon=3.0, delta=1 / 90)
    with pytest.raises(PrivacyError, match=r"client clinic has 90 rows, so below 0\.0111"):
        plan_run(SIZES, federation(), at_limit)
    below = PrivacyConfig(target_epsilon=3.0, delta=1 / 91)
    assert plan_run(SIZES, federation(num_rounds=1), below).clients["clinic"].dp is not None
    assert plan_run(SIZES, federation(), PrivacyConfig(enabled=False, delta=0.5)).clients


def test_without_privacy_nobody_has_a_mechanism() -> None:
    assert all(client.dp is None for client in plan_run(SIZES, federation(), OFF).clients.values())


def test_a_client_without_rows_is_refused() -> None:
    with pytest.raises(DataError, match="client empty has no rows"):
        plan_run({"a": 3, "empty": 0}, federation(), OFF)


def test_a_cohort_larger_than_the_federation_is_refused() -> None:
    with pytest.raises(ConfigError, match="clients_per_round is 5, but the federation has 4"):
        plan_run(SIZES, federation(clients_per_round=5), OFF)


def test_a_budget_that_no_noise_meets_is_refused() -> None:
    hopeless = PrivacyConfig(target_epsilon=1e-7, delta=1e-9)
    with pytest.raises(BudgetError, match="no noise multiplier"):
        plan_run({"a": 5}, federation(num_rounds=1), hopeless)


def test_a_forward_pass_in_half_precision_gets_more_noise() -> None:
    """At the same epsilon: the sensitivity grows and the multiplier stays."""
    exact = plan_run(SIZES, federation(), PRIVATE).clients["clinic"].dp
    half = plan_run(SIZES, federation(), PRIVATE, cross_talk=0.02).clients["clinic"].dp
    assert exact is not None
    assert half is not None
    assert half.event(1) == exact.event(1)
    grids = [
        Grid.for_clip_norm(config.l2_clip_norm, 1000, config.cross_talk) for config in (exact, half)
    ]
    assert grids[1].sensitivity - grids[0].sensitivity == pytest.approx(0.02 * half.l2_clip_norm)
    model = ModelConfig(name="m", task="classification")
    assert cross_talk(model) == 0
    assert cross_talk(model.model_copy(update={"precision": "bfloat16"})) == 0.02


def test_over_selected_clients_are_planned_for() -> None:
    """Who is asked pays, so its noise must fit the rounds that it is asked in."""
    plan = plan_run(SIZES, federation(clients_per_round=2, over_selection=1), PRIVATE)

    assert {len(cohort) for cohort in plan.cohorts} == {3}
    for client_id, client in plan.clients.items():
        assert client.num_rounds == sum(client_id in cohort for cohort in plan.cohorts)
        event = plan.event(client_id, 2)
        assert event is not None
        assert epsilon([event.repeated(client.num_rounds)], PRIVATE.delta) <= 3.0


def test_more_are_asked_than_there_are() -> None:
    with pytest.raises(ConfigError, match="3 and over_selection 2, but the federation has 4"):
        plan_run(SIZES, federation(clients_per_round=3, over_selection=2), OFF)


def test_a_client_with_less_budget_gets_more_noise() -> None:
    full = plan_run(SIZES, federation(), PRIVATE)
    left = plan_run(SIZES, federation(), PRIVATE, remaining_epsilon={"clinic": 1.0, "bank": 9.0})

    assert noise(left)["clinic"] > noise(full)["clinic"]
    assert {c: n for c, n in noise(left).items() if c != "clinic"} == {
        c: n for c, n in noise(full).items() if c != "clinic"
    }
    event = left.event("clinic", 2)
    assert event is not None
    assert epsilon([event.repeated(6)], PRIVATE.delta) <= 1.0


@pytest.mark.parametrize("left", [0.0, -1.0, math.nan])
def test_a_client_with_nothing_left_is_refused(left: float) -> None:
    with pytest.raises(PrivacyError, match="clinic"):
        plan_run(SIZES, federation(), PRIVATE, remaining_epsilon={"clinic": left})
