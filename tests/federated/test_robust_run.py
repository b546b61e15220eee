"""Whole simulated runs in which a client is malicious, or too few send anything."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedpeft.federated.local_training import LocalResult
from fedpeft.federated.observer import Observer
from fedpeft.federated.simulation import Simulation
from fedpeft.federated.trainer import Job, Trainer
from tests.federated.small_runs import SEEDED, SmallRun, outcome, run_config

Tamper = Callable[[int, Mapping[str, Tensor], Mapping[str, Tensor]], dict[str, Tensor]]
LIAR = "client-02"
ROBUST: dict[str, dict[str, object]] = {
    "norm-bound": {"max_update_norm": 0.05},
    "median": {"weighting": "uniform"},
    "trimmed-mean": {"num_byzantine": 1, "weighting": "uniform"},
    "multi-krum": {"num_byzantine": 1, "weighting": "uniform"},
}


@dataclass(frozen=True)
class Betrayed:
    """A trainer one of whose clients sends something else than it trained."""

    honest: Trainer
    tamper: Tamper

    def train(
        self, tensors: Mapping[str, Tensor], jobs: Iterator[Job], observer: Observer
    ) -> Iterator[tuple[Job, Mapping[str, LocalResult] | None]]:
        for job, results in self.honest.train(tensors, jobs, observer):
            assert results is not None
            if LIAR in results:
                sent = self.tamper(job.round, tensors, results[LIAR].tensors)
                results = {**results, LIAR: replace(results[LIAR], tensors=sent)}
            yield job, results


def reversed_and_huge(
    round_number: int, start: Mapping[str, Tensor], trained: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    return {name: start[name] - 1e4 * (tensor - start[name]) for name, tensor in trained.items()}


def nan_in_round_one(
    round_number: int, start: Mapping[str, Tensor], trained: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    return {n: t * torch.nan if round_number == 1 else t for n, t in trained.items()}


def finished(bert: Path, scratch: Path, tamper: Tamper | None, **settings: object) -> Simulation:
    """Five clients, one of which may lie."""
    settings = {"num_clients": 5, "aggregator": "fedsvd", **settings}
    config = run_config(bert, scratch, privacy=SEEDED, num_rows=150, **settings)
    run = SmallRun(config=config, folder=scratch / "run")
    simulation = run.simulation()
    if tamper is not None:
        simulation.trainer = Betrayed(simulation.trainer, tamper)
    simulation.run()
    return simulation


def moved(simulation: Simulation) -> float:
    """Norm of the adapter's update after the run."""
    return simulation.model.delta_norm(
        {name: tensor for name, tensor in simulation.tensors.items() if "lora" in name}
    )


@pytest.mark.parametrize("combine", sorted(ROBUST))
def test_a_liar_is_kept_out_or_down_and_named(
    tiny_bert: Path, tmp_path: Path, combine: str
) -> None:
    settings = {"combine": combine, **ROBUST[combine]}
    attacked = finished(tiny_bert, tmp_path / "attacked", reversed_and_huge, **settings)
    honest = finished(tiny_bert, tmp_path / "honest", None, **settings)
    assert moved(attacked) < 5 * moved(honest)
    for record in attacked.records:
        kept = {
            name.removeprefix("share_kept_of_"): share
            for name, share in record.diagnostics.items()
            if name.startswith("share_kept_of_")
        }
        assert list(kept) == record.cohort
        assert kept[LIAR] == min(kept.values()) < 0.01
        assert sum(share > 0.01 for share in kept.values()) >= 2


def test_without_them_it_takes_the_adapter_where_it_likes(tiny_bert: Path, tmp_path: Path) -> None:
    attacked = finished(tiny_bert, tmp_path / "attacked", reversed_and_huge)
    honest = finished(tiny_bert, tmp_path / "honest", None)
    assert moved(attacked) > 100 * moved(honest)
    assert all(record.diagnostics == {} for record in attacked.records)


@pytest.mark.parametrize("combine", ["multi-krum", "median"])
def test_a_round_with_too_few_updates_leaves_the_adapter_as_it_is(
    tiny_bert: Path, tmp_path: Path, combine: str
) -> None:
    """Krum with one attacker among five needs all five; a median goes on with four."""
    settings = {"combine": combine, **ROBUST[combine], "evaluate_every": 1}
    run = finished(tiny_bert, tmp_path, nan_in_round_one, **settings)
    first, second = run.records
    too_few = "round 1: only 4 of 5 updates to aggregate; the adapter is unchanged"
    if combine == "multi-krum":
        assert too_few in run.notes
        assert (first.cohort, first.diagnostics, first.uplink_bytes) == ([], {}, 0)
        assert first.metrics == run.initial_metrics
    else:
        assert too_few not in run.notes
        assert len(first.cohort) == 4
    assert len(second.cohort) == 5
    # Who trained has paid, whatever became of it.
    assert all(epsilon > 0 for epsilon in first.epsilon.values())


def test_a_combiner_costs_no_epsilon(tiny_bert: Path, tmp_path: Path) -> None:
    """It only sees what was released already: events and statements are those of the mean."""
    plain = outcome(finished(tiny_bert, tmp_path / "mean", None, weighting="uniform"))
    for combine, settings in ROBUST.items():
        options = {"weighting": "uniform", **settings, "combine": combine}
        found = outcome(finished(tiny_bert, tmp_path / combine, None, **options))
        assert found["events"] == plain["events"] != {}
        assert {c: s.epsilon for c, s in found["statements"].items()} == {
            c: s.epsilon for c, s in plain["statements"].items()
        }
        assert found["digest"] != plain["digest"], combine
