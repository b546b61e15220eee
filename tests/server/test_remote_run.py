"""Whole runs of real clients under a real coordinator: results, budgets, losses and resumptions."""

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from fedpeft.config import RunConfig
from fedpeft.dp.accounting import epsilon
from fedpeft.federated.messages import RoundPlan, RoundReply, UpdateHeader
from fedpeft.types import tensor_digest
from fedpeft.warm_worker import WarmWorker
from fedpeft.wire.blobs import to_blob
from fedpeft_server.records import RunStatus
from tests.federated.client_rounds import DELTA
from tests.federated.small_runs import OFF, SmallRun, run_config
from tests.server.local_federation import LocalFederation, ended, make_federation, remote_config

SIZES = {"bank": 9, "clinic": 12, "shop": 15}
PRIVATE = {"target_epsilon": 4.0, "delta": DELTA}


@pytest.fixture
def federation(tmp_path: Path, tiny_bert: Path) -> LocalFederation:
    return make_federation(tmp_path, tiny_bert, **SIZES)


def simulated_config(
    federation: LocalFederation, model: Path, privacy: dict[str, Any], **settings: Any
) -> RunConfig:
    files = []
    for name in SIZES:
        files.append(str(federation.folder / f"{name}.jsonl"))
        shutil.copy(federation.folder / name / "rows.jsonl", files[-1])
    settings = {"num_clients": None, "learning_rate": 0.5} | settings
    config = run_config(model, federation.folder / "data", privacy=privacy, **settings)
    content = config.model_dump(mode="json", exclude_unset=True)
    content["data"] = {
        "test": content["data"]["test"],
        "partition": "files",
        "client_files": files,
    }
    return RunConfig.model_validate(content)


def test_a_remote_run_makes_the_adapter_of_the_simulated_one(
    federation: LocalFederation, tiny_bert: Path
) -> None:
    """Bit for bit, with the noise off and the same coins: the same code trained and aggregated."""
    simulated = simulated_config(federation, tiny_bert, OFF, clients_per_round=2, num_rounds=3)
    expected = SmallRun(config=simulated, folder=federation.folder / "simulated").finished()
    federation.post.coin_seed = simulated.federation.seed
    run_id = federation.submit(remote_config(simulated, num_clients=3))

    with federation.coordinator() as (engine, state):
        engine.recover()
        assert ended(state, run_id).status is RunStatus.FINISHED
        newest = state.newest_adapter(run_id)
        rounds = state.rounds(run_id)
        clients = state.clients()
    assert all(c.last_seen is not None and c.last_seen >= c.enrolled_at for c in clients)
    assert newest is not None
    assert newest.digest == tensor_digest(expected.tensors)
    assert newest.metrics == expected.final_metrics
    assert [list(r.cohort) for r in rounds] == [r.cohort for r in expected.records]
    for record, other in zip(rounds, expected.records, strict=True):
        assert record.update_norms == pytest.approx(other.update_norms, rel=1e-12)
    assert newest.export is not None
    assert {"adapter_model.safetensors", "adapter_config.json"} <= newest.export.keys()


def test_every_client_is_charged_for_what_it_released(
    federation: LocalFederation, tiny_bert: Path
) -> None:
    config = simulated_config(federation, tiny_bert, PRIVATE, clients_per_round=2, num_rounds=3)
    run_id = federation.submit(remote_config(config, num_clients=3))

    with federation.coordinator() as (engine, state):
        engine.recover()
        assert ended(state, run_id).status is RunStatus.FINISHED
        newest, rounds = state.newest_adapter(run_id), state.rounds(run_id)
        budgets = {b.client_id: b for b in state.budgets(None)}
    assert newest is not None
    for name, client in federation.post.clients.items():
        num_rounds = sum(name in r.cohort for r in rounds)
        released = client.ledger.reservations(client.rows.dataset)
        assert len(released) == num_rounds
        assert all(client.ledger.release_of(r) for r in released)
        assert client.spent() == epsilon([r.event for r in released], DELTA)
        assert client.spent() <= PRIVATE["target_epsilon"]
        assert newest.epsilon.get(name, 0.0) == client.spent()
        if num_rounds:
            assert budgets[name].epsilon_spent == client.spent()
            assert budgets[name].ledger_head == str(client.ledger.head())


def test_a_killed_model_process_is_begun_again(
    federation: LocalFederation, tiny_bert: Path
) -> None:
    """The run's real process, killed where it works: nothing of the round is lost."""
    config = simulated_config(federation, tiny_bert, OFF, num_rounds=2)
    run_id = federation.submit(remote_config(config, num_clients=3))
    workers: list[WarmWorker] = []

    class Kept(WarmWorker):
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **settings)
            workers.append(self)

    def kill(client_id: str, plan: RoundPlan, reply: RoundReply, blob: bytes | None) -> Any:
        if (client_id, plan.round) == ("clinic", 1):
            assert workers[0].pid is not None
            os.kill(workers[0].pid, signal.SIGKILL)
        return reply, blob

    federation.make_worker, federation.post.tamper = Kept, kill
    with federation.coordinator() as (engine, state):
        engine.recover()
        assert ended(state, run_id).status is RunStatus.FINISHED
        assert [len(record.cohort) for record in state.rounds(run_id)] == [3, 3]
        notes = [event.body for event in state.events(run_id) if event.kind == "note"]
    assert notes == [{"message": "the process with the model was lost; begun again"}]


def test_a_coordinator_that_ended_goes_on_with_the_same_round(
    federation: LocalFederation, tiny_bert: Path
) -> None:
    """The clients that had answered are not charged again, and the adapter is the same.

    Whose tensors were lost meanwhile is asked again, and sends the same.
    """
    config = simulated_config(federation, tiny_bert, OFF, num_rounds=2)
    expected = SmallRun(config=config, folder=federation.folder / "simulated").finished()
    federation.post.coin_seed = config.federation.seed
    run_id = federation.submit(remote_config(config, num_clients=3))
    federation.post.away = set()

    def leaves(client_id: str, plan: RoundPlan, reply: RoundReply, blob: bytes | None) -> Any:
        if client_id == "clinic" and plan.round == 1:
            federation.post.away = {"shop"}
        return reply, blob

    federation.post.tamper = leaves
    with federation.coordinator() as (engine, state):
        engine.recover()
        position = 0
        while len(state.updates(run_id, 1)) < 2:
            position = max([e.position for e in state.wait_events(run_id, position, 60)] or [0])
        lost = state.updates(run_id, 1)[0]
    asked = len(federation.post.asked)
    federation.post.away = set()
    federation.artifacts.delete(lost.artifact)
    with federation.coordinator() as (engine, state):
        assert engine.recover() == [run_id]
        assert ended(state, run_id).status is RunStatus.FINISHED
        newest = state.newest_adapter(run_id)
    assert newest is not None
    assert newest.digest == tensor_digest(expected.tensors)
    assert federation.post.asked[asked:] == [
        (lost.client_id, 1),
        ("shop", 1),
        ("bank", 2),
        ("clinic", 2),
        ("shop", 2),
    ]


def test_without_a_quorum_a_run_fails_and_can_be_resumed(
    federation: LocalFederation, tiny_bert: Path
) -> None:
    config = simulated_config(federation, tiny_bert, OFF, num_rounds=1)
    quick = {"num_clients": 3, "quorum": 3, "round_deadline_s": 0.5, "most_attempts": 2}
    run_id = federation.submit(remote_config(config, **quick))

    def leave(client_id: str, plan: RoundPlan, reply: RoundReply, blob: bytes | None) -> Any:
        federation.post.away = {"shop"}
        return reply, blob

    federation.post.tamper = leave
    with federation.coordinator() as (engine, state):
        engine.recover()
        failed = ended(state, run_id)
        assert failed.status is RunStatus.FAILED
        assert "2 updates of the 3" in failed.reason
        assert federation.post.recalled >= 1
        federation.post.away, federation.post.tamper = set(), lambda c, p, r, b: (r, b)
        engine.resume(run_id)
        assert ended(state, run_id).status is RunStatus.FINISHED
        assert state.rounds(run_id)[0].cohort == ("bank", "clinic", "shop")


def test_the_first_updates_end_an_over_selected_round(
    federation: LocalFederation, tiny_bert: Path
) -> None:
    config = simulated_config(federation, tiny_bert, PRIVATE, num_rounds=1, clients_per_round=2)
    run_id = federation.submit(remote_config(config, num_clients=3, over_selection=1))

    with federation.coordinator() as (engine, state):
        engine.recover()
        assert ended(state, run_id).status is RunStatus.FINISHED
        [record] = state.rounds(run_id)
        newest = state.newest_adapter(run_id)
    assert len(record.cohort) == 2
    [[missing, reason]] = record.missing.items()
    assert reason == "late"
    # It was asked, and may have released all the same.
    assert newest is not None
    assert newest.epsilon[missing] > 0


Sent = tuple[RoundReply, bytes | None]


def with_nan(reply: RoundReply, blob: bytes) -> Sent:
    bad = {name: torch.full_like(tensor, float("nan")) for name, tensor in load(blob).items()}
    assert isinstance(reply.answer, UpdateHeader)
    return replace(reply, answer=replace(reply.answer, digest=tensor_digest(bad))), to_blob(bad)


TAMPERED: list[Callable[[RoundReply, bytes], Sent]] = [
    with_nan,
    lambda reply, blob: (reply, to_blob({"head.weight": torch.zeros(1, 1)})),
    lambda reply, blob: (reply, blob[:-4] + b"\x00\x00\x80\x3f"),
    lambda reply, blob: (replace(reply, round=70), blob),
    lambda reply, blob: (replace(reply, plan_digest="0" * 64), blob),
    lambda reply, blob: (replace(reply, client_id="shop"), blob),
    lambda reply, blob: (reply, None),
    lambda reply, blob: (reply, b"\x80\x04\x95 a pickle"),
]


def test_updates_that_cannot_be_used_cost_the_others_nothing(
    federation: LocalFederation, tiny_bert: Path
) -> None:
    """One round for each way in which `bank` is dishonest."""
    config = simulated_config(federation, tiny_bert, OFF, num_rounds=len(TAMPERED))
    run_id = federation.submit(remote_config(config, num_clients=3))

    def tamper(client_id: str, plan: RoundPlan, reply: RoundReply, blob: bytes | None) -> Sent:
        if client_id != "bank":
            return reply, blob
        assert blob is not None
        return TAMPERED[plan.round - 1](reply, blob)

    federation.post.tamper = tamper
    with federation.coordinator() as (engine, state):
        engine.recover()
        assert ended(state, run_id).status is RunStatus.FINISHED
        records = state.rounds(run_id)
        audited = [entry for entry in state.audit(0, 100) if entry.actor == "bank"]
    assert [record.cohort for record in records] == [("clinic", "shop")] * len(TAMPERED)
    assert [record.missing for record in records] == [{"bank": "rejected"}] * len(TAMPERED)
    assert [entry.outcome for entry in audited] == ["rejected"] * len(TAMPERED)


def test_a_stopped_run_goes_on_where_it_was(federation: LocalFederation, tiny_bert: Path) -> None:
    config = simulated_config(federation, tiny_bert, OFF, num_rounds=2)
    run_id = federation.submit(remote_config(config, num_clients=3))
    with federation.coordinator() as (engine, state):

        def stop(client_id: str, plan: RoundPlan, reply: RoundReply, blob: bytes | None) -> Any:
            if (client_id, plan.round) == ("bank", 2):
                engine.stop(run_id, "lunch")
            return reply, blob

        federation.post.tamper = stop
        engine.recover()
        stopped = ended(state, run_id)
        assert (stopped.status, stopped.reason) == (RunStatus.STOPPED, "lunch")
        federation.post.tamper = lambda c, p, r, b: (r, b)
        engine.resume(run_id)
        assert ended(state, run_id).status is RunStatus.FINISHED
        assert [record.round for record in state.rounds(run_id)] == [1, 2]
