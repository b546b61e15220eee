"""The round loop: what a run is charged, and that it can be stopped, killed and resumed."""

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from fedpeft.dp.accounting import epsilon
from fedpeft.errors import VerificationError
from fedpeft.federated import trainer as module
from fedpeft.federated.aggregators import AGGREGATORS
from fedpeft.federated.local_training import LocalClient, LocalResult
from fedpeft.federated.simulation import Simulation, Stopped
from fedpeft.types import tensor_digest
from tests.federated.small_runs import (
    OFF,
    SECRET,
    SEEDED,
    Crash,
    SmallRun,
    Watcher,
    charged,
    outcome,
    run_config,
    stop_after,
)

NUM_STOPS = 6  # 2 rounds of 3 clients


def small_run(bert: Path, tmp_path: Path, name: str = "run", **settings: object) -> SmallRun:
    return SmallRun(config=run_config(bert, tmp_path, **settings), folder=tmp_path / name)


# --- stopping and resuming


@pytest.mark.parametrize("privacy", [SEEDED, OFF], ids=["private", "plain"])
def test_a_run_stopped_anywhere_ends_as_if_it_never_was(
    tiny_bert: Path, tmp_path: Path, privacy: Mapping[str, object]
) -> None:
    """Bit for bit, after each number of clients in 2 rounds of 3."""
    expected = outcome(small_run(tiny_bert, tmp_path, "whole", privacy=privacy).finished())
    for stop in range(NUM_STOPS):
        run = small_run(tiny_bert, tmp_path, f"stop-{stop}", privacy=privacy)
        with pytest.raises(Stopped):
            run.finished(stop_requested=stop_after(stop))
        assert outcome(run.finished()) == expected


@pytest.mark.parametrize("privacy", [SEEDED, OFF], ids=["private", "plain"])
def test_a_run_stopped_after_every_client_ends_the_same(
    tiny_bert: Path, tmp_path: Path, privacy: Mapping[str, object]
) -> None:
    expected = outcome(small_run(tiny_bert, tmp_path, "whole", privacy=privacy).finished())
    run = small_run(tiny_bert, tmp_path, privacy=privacy)
    stops = 0
    while True:
        # Each session takes up what is durable, and trains one more.
        try:
            found = run.finished(stop_requested=stop_after(1))
        except Stopped:
            stops += 1
            continue
        break
    assert stops == NUM_STOPS - 1
    assert outcome(found) == expected


def test_a_finished_run_can_be_resumed_and_trains_no_more(tiny_bert: Path, tmp_path: Path) -> None:
    run = small_run(tiny_bert, tmp_path, privacy=SEEDED)
    expected = outcome(run.finished())
    watcher = Watcher()
    assert outcome(run.finished(watcher=watcher)) == expected
    assert [name for name, _, _ in watcher.events] == ["run_started"]


def test_a_plain_run_that_crashed_anywhere_ends_as_if_it_never_had(
    tiny_bert: Path, tmp_path: Path
) -> None:
    """At every event that an observer sees: each step, each batch of an evaluation."""
    watcher = Watcher()
    expected = outcome(small_run(tiny_bert, tmp_path, "whole").finished(watcher=watcher))
    points = range(0, len(watcher.events), 2)
    assert len(points) > 20
    for point in points:
        run = small_run(tiny_bert, tmp_path, f"crash-{point}")
        with pytest.raises(Crash):
            run.finished(watcher=Watcher(crash_at=point))
        assert outcome(run.finished()) == expected


def test_what_earlier_sessions_found_is_not_forgotten(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Notes and counts of examples that were no numbers, each of every round."""
    diverge(monkeypatch, {"client-01"})
    train = module.train_locally

    def counting(*args: object, **kwargs: object) -> list[LocalResult]:
        return [
            LocalResult(tensors=result.tensors, num_nonfinite=2)
            for result in train(*args, **kwargs)
        ]

    monkeypatch.setattr(module, "train_locally", counting)
    run = small_run(tiny_bert, tmp_path)
    with pytest.raises(Stopped):
        run.finished(stop_requested=stop_after(4))
    found = run.finished()
    assert [note.partition(":")[0] for note in found.notes] == ["round 1", "round 2"]
    assert found.num_nonfinite == {"client-00": 4, "client-01": 0, "client-02": 4}


# --- what a crash costs


def crash_in(run: SmallRun, client_id: str, round_number: int) -> None:
    """Lets the process die in that client's training, after its reservation."""
    current: list[tuple[object, ...]] = []

    class Dying(Watcher):
        def client_started(self, number: int, client: str, num_steps: int) -> None:
            current.append((number, client))

        def step_finished(self, client: str, step: int) -> None:
            if current[-1] == (round_number, client_id):
                raise Crash

    with pytest.raises(Crash):
        run.finished(watcher=Dying())


def test_a_crash_in_a_client_stays_charged_and_the_client_sits_out_at_last(
    tiny_bert: Path, tmp_path: Path
) -> None:
    undisturbed = small_run(tiny_bert, tmp_path, "whole", privacy=SEEDED).finished()
    run = small_run(tiny_bert, tmp_path, privacy=SEEDED)
    crash_in(run, "client-01", 1)
    assert len(charged(run.folder / "ledger.db")["client-01"]) == 1, "the reservation was lost"
    found = run.finished()

    once, twice = (undisturbed.records[i].epsilon["client-01"] for i in (0, 1))
    assert found.records[0].epsilon["client-01"] == pytest.approx(twice)
    assert twice > once
    for client_id in found.plan.clients:
        assert found.statements[client_id].epsilon >= undisturbed.statements[client_id].epsilon
        assert found.statements[client_id].epsilon <= 4.0
    # Its two rounds are spent: the interrupted attempt and the repeated one.
    assert found.records[0].cohort == ["client-00", "client-01", "client-02"]
    assert found.records[1].cohort == ["client-00", "client-02"]
    assert len(charged(found.folder.ledger)["client-01"]) == 2
    [note] = found.notes
    assert note.startswith("round 2: client-01 sits out: epsilon 3.9")
    assert note.endswith("one more round would exceed its budget of 4")
    assert found.records[1].uplink_bytes == undisturbed.records[1].uplink_bytes * 2 // 3


@pytest.mark.parametrize("clients_at_once", [1, 3])
def test_who_sat_out_is_not_forgotten_by_a_crash(
    tiny_bert: Path, tmp_path: Path, clients_at_once: int
) -> None:
    runs = []
    for name in ("first", "second"):
        settings = {"privacy": SEEDED, "clients_at_once": clients_at_once}
        run = small_run(tiny_bert, tmp_path, name, **settings)
        label = "client-01" if clients_at_once == 1 else "3 clients at once"
        crash_in(run, label, 1)
        runs.append(run)
    expected = outcome(runs[0].finished())
    assert expected["notes"]

    class Dying(Watcher):
        def client_finished(self, number: int, client: str, spent: float) -> None:
            if (number, client) == (2, "client-02"):
                raise Crash

        def round_finished(self, number: int, *args: object) -> None:
            pass

        def evaluation_started(self, num_rows: int) -> None:
            if self.named("round_started")[-1:] == [(2, ("client-00", "client-01", "client-02"))]:
                raise Crash

    for _ in range(2):
        with pytest.raises(Crash):
            runs[1].finished(watcher=Dying())
    assert outcome(runs[1].finished()) == expected


def test_a_client_that_crashes_again_and_again_never_exceeds_its_budget(
    tiny_bert: Path, tmp_path: Path
) -> None:
    run = small_run(tiny_bert, tmp_path, privacy=SEEDED)
    for _ in range(2):
        crash_in(run, "client-01", 1)
    found = run.finished()
    assert len(charged(found.folder.ledger)["client-01"]) == 2
    assert found.statements["client-01"].epsilon <= 4.0
    assert all("client-01" not in record.cohort for record in found.records)
    assert len(found.notes) == 2


def test_a_crash_between_update_and_round_costs_nothing_more(
    tiny_bert: Path, tmp_path: Path
) -> None:
    """The update is durable, so that nobody trains again for it."""
    expected = outcome(small_run(tiny_bert, tmp_path, "whole", privacy=SEEDED).finished())
    run = small_run(tiny_bert, tmp_path, privacy=SEEDED)

    class Dying(Watcher):
        def client_finished(self, number: int, client: str, spent: float) -> None:
            if client == "client-02":
                raise Crash

    for _ in range(2):
        with pytest.raises(Crash):
            run.finished(watcher=Dying())
    assert outcome(run.finished()) == expected


def test_the_event_is_on_disk_before_the_first_gradient(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small_run(tiny_bert, tmp_path, privacy=SEEDED)
    seen: list[int] = []
    train = module.train_locally

    def spy(model: object, clients: list[LocalClient], *args: object, **kwargs: object) -> object:
        for client in clients:
            events = charged(run.folder / "ledger.db")[client.plan.client_id]
            assert events[-1] == client.plan.dp.event(2)
            seen.append(len(events))
        return train(model, clients, *args, **kwargs)

    monkeypatch.setattr(module, "train_locally", spy)
    run.finished()
    assert seen == [1, 1, 1, 2, 2, 2]


# --- what a run is charged


def test_a_run_spends_what_it_planned(tiny_bert: Path, tmp_path: Path) -> None:
    watcher = Watcher()
    found = small_run(tiny_bert, tmp_path, privacy=SEEDED).finished(watcher=watcher)
    for client_id, client in found.plan.clients.items():
        assert client.dp is not None
        assert charged(found.folder.ledger)[client_id] == [client.dp.event(2)] * 2
        assert found.records[-1].epsilon[client_id] == found.statements[client_id].epsilon
        assert 0.97 * 4 < found.statements[client_id].epsilon <= 4
    [started] = [kwargs for name, _, kwargs in watcher.events if name == "run_started"]
    assert started["private"] is True
    assert started["target_epsilon"] == 4.0
    assert len(watcher.named("step_finished")) == 2 * 3 * 2


def test_each_client_of_a_partial_cohort_pays_for_its_own_rounds(
    tiny_bert: Path, tmp_path: Path
) -> None:
    found = small_run(
        tiny_bert, tmp_path, privacy=SEEDED, num_rounds=4, clients_per_round=1
    ).finished()
    before = dict.fromkeys(found.plan.clients, 0.0)
    for record, cohort in zip(found.records, found.plan.cohorts, strict=True):
        assert record.cohort == list(cohort)
        assert record.update_norms.keys() == set(cohort)
        for client_id, spent in record.epsilon.items():
            assert (spent > before[client_id]) == (client_id in cohort)
        before = record.epsilon
    rounds = {c: p.num_rounds for c, p in found.plan.clients.items()}
    assert sum(rounds.values()) == 4
    assert len(set(rounds.values())) > 1, "choose another seed"
    for client_id, client in found.plan.clients.items():
        events = charged(found.folder.ledger)[client_id]
        assert client.dp is not None
        assert events == [client.dp.event(2)] * rounds[client_id]
        assert found.statements[client_id].epsilon == epsilon(events, 0.02)
        assert found.statements[client_id].epsilon <= 4.0
        assert (found.statements[client_id].epsilon == 0) == (rounds[client_id] == 0)


def test_a_plain_run_reserves_nothing(tiny_bert: Path, tmp_path: Path) -> None:
    found = small_run(tiny_bert, tmp_path).finished()
    assert not found.folder.ledger.exists()
    assert found.statements == {}
    assert all(record.epsilon == {} for record in found.records)


def test_the_seed_says_nothing_about_the_noise(tiny_bert: Path, tmp_path: Path) -> None:
    """Equal seeds repeat a seeded run and a plain one, and never a private one."""
    for privacy, repeats in ((SEEDED, True), (OFF, True), (SECRET, False)):
        names = [f"{len(privacy)}-{repeats}-{i}" for i in range(2)]
        digests = {
            tensor_digest(
                small_run(tiny_bert, tmp_path, name, privacy=privacy, num_rounds=1)
                .finished()
                .tensors
            )
            for name in names
        }
        assert (len(digests) == 1) is repeats


def test_other_seeds_give_other_runs(tiny_bert: Path, tmp_path: Path) -> None:
    digests = {
        tensor_digest(small_run(tiny_bert, tmp_path, f"{seed}", seed=seed).finished().tensors)
        for seed in range(3)
    }
    assert len(digests) == 3


def test_bytes_and_norms_are_those_of_what_was_sent(tiny_bert: Path, tmp_path: Path) -> None:
    found = small_run(tiny_bert, tmp_path).finished()
    adapted = 2 * 2  # query and value of 2 layers
    b, a, head = 4 * adapted * 32 * 4, 4 * adapted * 4 * 32, 4 * (2 * 32 + 2)
    assert {record.uplink_bytes for record in found.records} == {3 * (b + head)}
    assert {record.downlink_bytes for record in found.records} == {3 * (a + b + head)}
    assert all(norm > 0 for record in found.records for norm in record.update_norms.values())


def test_evaluation_every_other_round_and_after_the_last(tiny_bert: Path, tmp_path: Path) -> None:
    found = small_run(tiny_bert, tmp_path, num_rounds=5, evaluate_every=2).finished()
    assert [record.metrics is not None for record in found.records] == [0, 1, 0, 1, 1]
    assert found.final_metrics == found.records[-1].metrics


def test_every_client_and_round_has_its_own_noise(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise that comes twice cancels in a difference of two updates."""
    seeds: list[int] = []
    make = module.Keystream.insecure_from_seed

    def spy(seed: int) -> module.Keystream:
        seeds.append(seed)
        return make(seed)

    monkeypatch.setattr(module.Keystream, "insecure_from_seed", spy)
    small_run(tiny_bert, tmp_path, privacy=SEEDED).finished()
    assert len(set(seeds)) == len(seeds) == 6


def test_the_aggregate_uses_the_weights_of_the_plan(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order of the cohort, of clients of unequal size."""
    given: list[list[float]] = []
    ffa = AGGREGATORS["ffa-lora"]

    class Spy:
        trained_factors = ffa.trained_factors

        def aggregate(
            self, tensors: object, updates: object, weights: list[float], *combiner: object
        ) -> object:
            given.append(weights)
            return ffa.aggregate(tensors, updates, weights, *combiner)

    monkeypatch.setitem(AGGREGATORS, "ffa-lora", Spy())
    found = small_run(
        tiny_bert, tmp_path, num_rows=7, clients_per_round=2, num_rounds=4, aggregator="ffa-lora"
    ).finished()
    by_client = {client_id: client.weight for client_id, client in found.plan.clients.items()}
    assert set(by_client.values()) == {3 / 7, 2 / 7}
    assert given == [[by_client[c] for c in cohort] for cohort in found.plan.cohorts]


# --- results that must not pass


def test_an_adapter_that_never_changed_does_not_pass(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lazy(model: object, clients: object, *args: object, **kwargs: object) -> list[LocalResult]:
        trained = [n for n, p in model.task_model.named_parameters() if p.requires_grad]
        tensors = model.tensors()
        still = LocalResult(tensors={n: tensors[n] for n in trained}, num_nonfinite=0)
        return [still for _ in clients]

    monkeypatch.setattr(module, "train_locally", lazy)
    with pytest.raises(VerificationError, match="the adapter did not change"):
        small_run(tiny_bert, tmp_path).finished()


def diverge(monkeypatch: pytest.MonkeyPatch, clients: set[str]) -> None:
    train = module.train_locally

    def diverging(model: object, cohort: list[LocalClient], *args: object, **kwargs: object):
        results = train(model, cohort, *args, **kwargs)
        for client, result in zip(cohort, results, strict=True):
            if client.plan.client_id in clients:
                result.tensors["head.bias"][0] = torch.nan
        return results

    monkeypatch.setattr(module, "train_locally", diverging)


def test_a_client_that_diverged_is_left_out_and_named(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It costs the round its update, never the run; its own charge stays."""
    diverge(monkeypatch, {"client-01"})
    found = small_run(tiny_bert, tmp_path, privacy=SEEDED).finished()
    assert [record.cohort for record in found.records] == [["client-00", "client-02"]] * 2
    assert len(found.notes) == 2
    assert "round 1: the update of client-01 holds NaN" in found.notes[0]
    assert len(charged(found.folder.ledger)["client-01"]) == 2
    assert all(torch.isfinite(tensor).all() for tensor in found.tensors.values())


def test_a_run_in_which_everyone_diverged_does_not_pass(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diverge(monkeypatch, {"client-00", "client-01", "client-02"})
    with pytest.raises(VerificationError, match="did not change"):
        small_run(tiny_bert, tmp_path).finished()


# --- what must not matter


@pytest.mark.parametrize("privacy", [SEEDED, OFF], ids=["private", "plain"])
def test_the_size_of_a_physical_batch_does_not_matter(
    tiny_bert: Path, tmp_path: Path, privacy: Mapping[str, object]
) -> None:
    runs: list[Simulation] = [
        small_run(
            tiny_bert,
            tmp_path,
            f"{max_tokens}",
            privacy=privacy,
            learning_rate=0.1,
            model_fields={"max_tokens_per_batch": max_tokens},
        ).finished()
        for max_tokens in (1, 40, 100_000)
    ]
    for run in runs[1:]:
        for name, tensor in runs[0].tensors.items():
            assert torch.allclose(run.tensors[name], tensor, rtol=1e-5, atol=1e-5), name
        assert run.final_metrics == pytest.approx(runs[0].final_metrics, rel=1e-4)


@pytest.mark.parametrize("aggregator", ["fedsvd", "fedavg", "ffa-lora", "frozen-orthonormal"])
@pytest.mark.parametrize(
    ("model", "targets"),
    [("tiny_llama", ("q_proj", "v_proj")), ("tiny_gpt2", ("c_attn", "c_proj"))],
)
def test_language_models_train_privately(
    model: str,
    targets: tuple[str, ...],
    aggregator: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    config = run_config(
        request.getfixturevalue(model),
        tmp_path,
        task="causal-lm",
        privacy=SEEDED,
        adapter={"target_modules": targets},
        num_rounds=1,
        num_clients=2,
        aggregator=aggregator,
    )
    found = SmallRun(config=config, folder=tmp_path / "run").finished()
    assert found.final_metrics.keys() == {"loss", "perplexity", "token_accuracy"}
    assert found.final_metrics != found.initial_metrics
    assert sum(found.num_nonfinite.values()) == 0


def test_training_lowers_the_loss(tiny_bert: Path, tmp_path: Path) -> None:
    found = small_run(
        tiny_bert,
        tmp_path,
        num_rows=90,
        num_rounds=4,
        local_steps=10,
        expected_batch_size=30,
        optimizer="adam",
        learning_rate=0.02,
    ).finished()
    assert found.initial_metrics["loss"] == pytest.approx(math.log(2), rel=1e-5)
    assert found.final_metrics["loss"] < 0.8 * math.log(2)
    assert found.final_metrics["accuracy"] > 0.6
