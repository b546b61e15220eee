"""Runs with client-level privacy: one noise a round, on the sum of whole updates."""

import shutil
from pathlib import Path

import pytest
import torch

from fedpeft.dp.accounting import epsilon
from fedpeft.errors import PrivacyError, VerificationError
from fedpeft.federated import simulation as module
from fedpeft.federated.plan import plan_run
from fedpeft.federated.simulation import Stopped
from fedpeft.types import tensor_digest
from tests.federated.small_runs import (
    OFF,
    Crash,
    SmallRun,
    Watcher,
    charged,
    outcome,
    run_config,
    stop_after,
)

CLIENT_LEVEL = {
    "mechanism": "client-level",
    "target_epsilon": 4.0,
    "delta": 0.02,
    "l2_clip_norm": 0.1,
    "insecure_seeded_noise": True,
}
UNIFORM = {"weighting": "uniform", "learning_rate": 0.05}


def small_run(bert: Path, tmp_path: Path, name: str = "run", **settings: object) -> SmallRun:
    fields = {"privacy": CLIENT_LEVEL, **UNIFORM, **settings}
    return SmallRun(config=run_config(bert, tmp_path, **fields), folder=tmp_path / name)


def test_each_client_pays_for_its_rounds(tiny_bert: Path, tmp_path: Path) -> None:
    run = small_run(tiny_bert, tmp_path, num_rounds=4, clients_per_round=2)
    found = run.finished()
    events = charged(found.folder.ledger)
    assert found.plan.client_level is not None
    for client_id, client in found.plan.clients.items():
        assert client.dp is None
        assert events[client_id] == [found.plan.client_level.event(1)] * client.num_rounds
        statement = found.statements[client_id]
        assert statement.epsilon == epsilon(events[client_id], 0.02) <= 4.0
        assert statement.num_releases == client.num_rounds
    # The noise fits the one that takes part most often.
    assert max(s.epsilon for s in found.statements.values()) > 0.98 * 4.0


def test_the_mean_is_clipped_and_divided_by_the_planned_cohort(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With next to no noise the adapter moves as the mean of clipped updates says."""
    sent: list[list[dict[str, torch.Tensor]]] = []
    ffa = module.AGGREGATORS["ffa-lora"]

    class Spy:
        trained_factors = ffa.trained_factors

        def aggregate(
            self, tensors: object, updates: list, weights: list[float], *combiner: object
        ) -> object:
            sent.append(updates)
            assert weights == [1.0]
            return ffa.aggregate(tensors, updates, weights, *combiner)

    monkeypatch.setitem(module.AGGREGATORS, "ffa-lora", Spy())
    quiet = {**CLIENT_LEVEL, "l2_clip_norm": 0.02, "target_epsilon": 1e7}
    quiet |= {"min_noise_multiplier": 0.0}
    plain = small_run(tiny_bert, tmp_path, "plain", privacy=OFF, num_rounds=1).finished()
    run = small_run(tiny_bert, tmp_path, privacy=quiet, num_rounds=1, aggregator="ffa-lora")
    start = run.simulation().model.tensors()
    found = run.finished()
    [[mean]] = sent
    moved = torch.cat([(mean[name] - start[name]).flatten() for name in mean]).norm()
    norms = plain.records[0].update_norms.values()
    assert all(norm > 0.04 for norm in norms), "choose a higher rate: nothing would be clipped"
    assert 0.005 < float(moved) <= 0.02 * 1.05
    assert found.records[0].update_norms.keys() == set(run.assemble().plan.clients)


@pytest.mark.parametrize("stop", [1, 3, 4])
def test_a_stopped_run_goes_on_bit_for_bit(tiny_bert: Path, tmp_path: Path, stop: int) -> None:
    expected = outcome(small_run(tiny_bert, tmp_path, "whole").finished())
    run = small_run(tiny_bert, tmp_path)
    with pytest.raises(Stopped):
        run.finished(stop_requested=stop_after(stop))
    assert outcome(run.finished()) == expected


def test_a_crash_after_the_release_never_draws_another(tiny_bert: Path, tmp_path: Path) -> None:
    """Secret noise: a second draw could not be the same."""
    secret = {name: value for name, value in CLIENT_LEVEL.items() if "insecure" not in name}
    run = small_run(tiny_bert, tmp_path, privacy=secret, num_rounds=1)

    class Dying(Watcher):
        def evaluation_started(self, num_rows: int) -> None:
            if self.named("round_started"):
                raise Crash

    for _ in range(2):
        with pytest.raises(Crash):
            run.finished(watcher=Dying())
    [folder] = (run.folder / "checkpoint").glob("round-*")
    released = (folder / "release.safetensors").read_bytes()
    with pytest.raises(Crash):
        run.finished(watcher=Dying())
    assert (folder / "release.safetensors").read_bytes() == released
    found = run.finished()
    assert {len(events) for events in charged(found.folder.ledger).values()} == {1}


def test_who_sits_out_counts_as_zero(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[int] = []
    release = module.ClientLevel.release

    def spy(self: object, updates: object) -> object:
        listed = list(updates)
        received.append(len(listed))
        return release(self, listed)

    monkeypatch.setattr(module.ClientLevel, "release", spy)
    run = small_run(tiny_bert, tmp_path)

    class Dying(Watcher):
        def step_finished(self, client: str, step: int) -> None:
            if client == "client-01":
                raise Crash

    with pytest.raises(Crash):
        run.finished(watcher=Dying())
    found = run.finished()
    # client-01 paid twice for round 1, and cannot for round 2.
    assert received == [3, 2]
    assert found.records[1].cohort == ["client-00", "client-02"]


def test_noise_is_drawn_anew_each_round(tiny_bert: Path, tmp_path: Path) -> None:
    digests = {
        tensor_digest(small_run(tiny_bert, tmp_path, f"{i}", privacy=privacy).finished().tensors)
        for i, privacy in enumerate(
            [CLIENT_LEVEL, CLIENT_LEVEL, {**CLIENT_LEVEL, "insecure_seeded_noise": False}]
        )
    }
    assert len(digests) == 2


def test_weights_by_rows_are_refused(tiny_bert: Path, tmp_path: Path) -> None:
    config = run_config(tiny_bert, tmp_path, privacy=CLIENT_LEVEL)
    with pytest.raises(PrivacyError, match=r"needs federation\.weighting = 'uniform'"):
        plan_run({"a": 5, "b": 5, "c": 5}, config.federation, config.privacy)


def test_delta_is_held_against_the_number_of_clients(tiny_bert: Path, tmp_path: Path) -> None:
    config = run_config(tiny_bert, tmp_path, privacy={**CLIENT_LEVEL, "delta": 0.4}, **UNIFORM)
    with pytest.raises(PrivacyError, match=r"below 1/n for the 3 clients, so below 0\.333"):
        plan_run({"a": 5, "b": 5, "c": 5}, config.federation, config.privacy)


def test_diverged_updates_are_noted_and_a_run_of_noise_alone_fails(
    tiny_bert: Path, tmp_path: Path
) -> None:
    run = small_run(tiny_bert, tmp_path, learning_rate=1e25)
    simulation = run.simulation()
    with pytest.raises(VerificationError, match="the adapter is noise alone"):
        simulation.run()
    assert len(simulation.notes) == 6
    assert all("and counts as zero; lower learning_rate" in note for note in simulation.notes)


def test_no_update_without_noise_is_left_on_disk(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the process died between a finished round and its removal."""
    run = small_run(tiny_bert, tmp_path)
    with monkeypatch.context() as patch:
        remove = shutil.rmtree

        def crash(path: Path, **options: bool) -> None:
            if Path(path).name.startswith("round-"):
                raise Crash
            remove(path, **options)

        patch.setattr(shutil, "rmtree", crash)
        with pytest.raises(Crash):
            run.finished()
    assert list((run.folder / "checkpoint").glob("round-0001/*"))
    run.finished()
    assert not list((run.folder / "checkpoint").glob("round-*"))
