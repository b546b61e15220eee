"""What a configuration may ask of a combination of updates."""

import re
from collections.abc import Mapping

import pytest

from fedpeft.config import validate_config
from fedpeft.dp.config import PrivacyConfig
from fedpeft.errors import ConfigError
from fedpeft.federated.aggregators.combiners import (
    Combiner,
    Median,
    MultiKrum,
    NormBound,
    TrimmedMean,
    WeightedMean,
    combiner_for,
)
from fedpeft.federated.config import FederationConfig
from fedpeft.federated.plan import plan_run
from fedpeft.federated.robustness import check_num_updates, min_num_updates

OFF = PrivacyConfig(enabled=False)


def federation(**settings: object) -> FederationConfig:
    return FederationConfig.model_validate({"sampling_prob": 0.5, **settings})


GOOD: list[tuple[Mapping[str, object], Combiner]] = [
    ({}, WeightedMean()),
    ({"combine": "norm-bound", "max_update_norm": 3.5}, NormBound(max_update_norm=3.5)),
    ({"combine": "median", "weighting": "uniform"}, Median()),
    (
        {"combine": "trimmed-mean", "num_byzantine": 1, "weighting": "uniform"},
        TrimmedMean(num_byzantine=1),
    ),
    (
        {"combine": "multi-krum", "num_byzantine": 1, "weighting": "uniform"},
        MultiKrum(num_byzantine=1),
    ),
]


@pytest.mark.parametrize(("settings", "expected"), GOOD, ids=str)
def test_the_configuration_makes_its_combiner(
    settings: Mapping[str, object], expected: Combiner
) -> None:
    config = federation(**settings)
    found = combiner_for(config)
    assert found == expected
    assert found.name == config.combine
    assert found.min_num_updates == min_num_updates(config.combine, config.num_byzantine)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"combine": "norm-bound"}, "'norm-bound' needs max_update_norm"),
        ({"combine": "trimmed-mean", "weighting": "uniform"}, "needs num_byzantine"),
        ({"combine": "multi-krum", "weighting": "uniform"}, "needs num_byzantine"),
        ({"max_update_norm": 1.0}, "max_update_norm goes with combine = 'norm-bound', not with"),
        ({"num_byzantine": 1}, "goes with combine = 'trimmed-mean' or 'multi-krum', not with"),
        ({"combine": "median", "num_byzantine": 1, "weighting": "uniform"}, "not with 'median'"),
        (
            {"combine": "norm-bound", "max_update_norm": 1.0, "num_byzantine": 1},
            "not with 'norm-bound'",
        ),
        ({"combine": "median"}, "counts clients, each as one"),
        ({"combine": "trimmed-mean", "num_byzantine": 1}, "set weighting = 'uniform'"),
        ({"combine": "multi-krum", "num_byzantine": 1}, "set weighting = 'uniform'"),
        ({"combine": "norm-bound", "max_update_norm": 0}, "greater than 0"),
        ({"combine": "norm-bound", "max_update_norm": "inf"}, "finite"),
        ({"combine": "norm-bound", "max_update_norm": "nan"}, "nan|finite|greater than 0"),
        ({"combine": "trimmed-mean", "num_byzantine": 0}, "greater than or equal to 1"),
        ({"combine": "krum"}, "'multi-krum'"),
    ],
    ids=str,
)
def test_parameters_that_do_not_go_together_are_refused(
    settings: Mapping[str, object], expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        federation(**settings)


@pytest.mark.parametrize("where", ["num_clients", "clients_per_round"])
@pytest.mark.parametrize(("combine", "fewest"), [("trimmed-mean", 5), ("multi-krum", 7)])
def test_a_cohort_too_small_is_refused(combine: str, fewest: int, where: str) -> None:
    settings = {"combine": combine, "num_byzantine": 2, "weighting": "uniform"}
    settings |= {"num_clients": 20}
    federation(**{**settings, where: fewest})
    expected = f"needs at least {fewest} updates, but a round has {fewest - 1}"
    with pytest.raises(ValueError, match=expected):
        federation(**{**settings, where: fewest - 1})


def test_a_cohort_that_is_known_late_is_refused_by_the_plan() -> None:
    """With one file a client, nobody says how many clients there are."""
    config = federation(combine="multi-krum", num_byzantine=1, weighting="uniform", num_rounds=1)
    plan_run({f"bank {i}": 10 for i in range(5)}, config, OFF)
    with pytest.raises(ConfigError, match="needs at least 5 updates, but a cohort has 4"):
        plan_run({f"bank {i}": 10 for i in range(4)}, config, OFF)


def test_what_is_too_small_is_named() -> None:
    check_num_updates("median", None, 1, "the quorum")
    with pytest.raises(ValueError, match="3 updates, but the quorum has 2; ask more clients"):
        check_num_updates("trimmed-mean", 1, 2, "the quorum")


def run_content(**sections: Mapping[str, object]) -> dict[str, object]:
    content: dict[str, dict[str, object]] = {
        "model": {"name": "anywhere", "task": "classification"},
        "data": {"train": "train.jsonl", "test": "test.jsonl"},
        "adapter": {"rank": 4, "target_modules": ["query"]},
        "federation": {"num_clients": 6, "sampling_prob": 0.5, "weighting": "uniform"},
        "privacy": {"delta": 0.01},
    }
    return {name: {**content[name], **sections.get(name, {})} for name in content}


@pytest.mark.parametrize("settings", [settings for settings, _ in GOOD[1:]], ids=str)
def test_client_level_privacy_goes_with_the_weighted_mean_alone(
    settings: Mapping[str, object],
) -> None:
    """Its noise fits the sensitivity of a sum."""
    client_level = {"mechanism": "client-level"}
    validate_config(run_content(privacy=client_level), "run.toml")
    validate_config(run_content(federation=settings), "run.toml")
    with pytest.raises(ConfigError, match=re.escape("cannot be private at client level")):
        validate_config(run_content(federation=settings, privacy=client_level), "run.toml")
