"""Runs as their operator, and others, see them through the SDK."""

import threading
from pathlib import Path

import pytest

from fedpeft.errors import RemoteError
from fedpeft.remote.records import RunEvent, RunStatus
from fedpeft_server import events
from fedpeft_server.records import RunStatus as Kept
from tests.server.control_rig import Rig
from tests.server.runs import config, play_round, submitted

ROWS = b'{"text": "a", "label": "x"}\n'


def code(error: pytest.ExceptionInfo[RemoteError]) -> str:
    return error.value.code


def test_a_run_is_submitted_with_its_held_out_rows(rig: Rig, tmp_path: Path) -> None:
    held_out = tmp_path / "held out.jsonl"
    held_out.write_bytes(ROWS)
    content = config(data={"test": str(held_out)}, output={"name": "trial 7"})
    run = rig.connect("operator").submit_run(content, held_out=held_out)
    assert (run.name, run.submitted_by, run.clients) == ("trial 7", "operator", "remote")
    assert rig.engine.started[-1] == run.run_id
    kept = rig.state.run(run.run_id)
    assert kept.held_out is not None
    assert rig.artifacts.get(kept.held_out) == ROWS
    details = rig.connect("reader").get_run(run.run_id)
    assert details.config["data"]["test"] == "uploaded:held out.jsonl"
    assert details.run.status is RunStatus.RUNNING
    assert run.run_id in [listed.run_id for listed in rig.connect("auditor").list_runs()]


def test_the_same_key_is_the_same_run(rig: Rig) -> None:
    operator = rig.connect("operator")
    first = operator.submit_run(config(), idempotency_key="once")
    assert operator.submit_run(config(), idempotency_key="once").run_id == first.run_id


def test_a_run_in_numbers(rig: Rig) -> None:
    run_id = submitted(rig)
    for number in (1, 2):
        newest = play_round(rig, run_id, number, clients=("clinic", "hospital"))
    found = rig.connect("operator").get_run(run_id)
    assert (found.run.num_rounds_finished, found.run.adapter) == (2, newest)
    assert [entry.round for entry in found.rounds] == [1, 2]
    assert found.rounds[1].metrics["accuracy"] == pytest.approx(0.7)
    assert [(p.client_id, p.num_updates, p.epsilon_spent) for p in found.participants] == [
        ("clinic", 2, 1.0),
        ("hospital", 2, 1.0),
    ]


def test_who_sees_which_participants(rig: Rig) -> None:
    run_id = submitted(rig)
    play_round(rig, run_id, 1, clients=("clinic", "hospital"))
    seen = {
        name: [p.client_id for p in rig.connect(name).get_run(run_id).participants]
        for name in ("operator", "auditor", "clinic", "reader")
    }
    both = ["clinic", "hospital"]
    assert seen == {"operator": both, "auditor": both, "clinic": ["clinic"], "reader": []}
    budgets = {
        name: {b.client_id for b in rig.connect(name).list_budgets()}
        for name in ("operator", "auditor", "clinic")
    }
    assert budgets == {"operator": set(both), "auditor": set(both), "clinic": {"clinic"}}
    assert rig.connect("clinic").list_budgets("hospital") == []


def test_watching_tells_the_past_then_the_present_then_ends(rig: Rig) -> None:
    run_id = submitted(rig)
    rig.state.add_event(run_id, events.NOTE, body={"message": "before"})
    seen: list[RunEvent] = []
    live = threading.Event()

    def watch() -> None:
        for event in rig.connect("reader").watch_run(run_id):
            seen.append(event)
            if event.body.get("message") == "before":
                live.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert live.wait(20)
    rig.state.add_event(run_id, events.NOTE, round=1, body={"message": "now"})
    rig.engine.turn(run_id, Kept.FINISHED)
    watcher.join(20)
    assert not watcher.is_alive(), "the stream ends with the run"
    assert [event.position for event in seen] == [1, 2, 3, 4]
    assert [event.body.get("message") for event in seen] == [None, "before", "now", None]
    assert seen[2].round == 1
    assert seen[-1].body == {"status": "finished", "reason": ""}


def test_watching_an_ended_run_ends(rig: Rig) -> None:
    run_id = submitted(rig)
    rig.engine.turn(run_id, Kept.FAILED, "no quorum")
    reader = rig.connect("reader")
    assert [event.position for event in reader.watch_run(run_id)] == [1, 2]
    assert [event.position for event in reader.watch_run(run_id, after=1)] == [2]
    assert list(reader.watch_run(run_id, after=2)) == []


def test_watching_ends_where_the_last_event_was_lost(rig: Rig) -> None:
    """A crash between the run's status and the event that tells it."""
    run_id = submitted(rig)
    rig.state.set_run_status(run_id, Kept.FAILED, reason="killed")
    assert len(list(rig.connect("reader").watch_run(run_id))) == 1


def test_a_long_past_is_told_whole(rig: Rig) -> None:
    run_id = submitted(rig)
    for _ in range(1100):  # more than one page
        rig.state.add_event(run_id, events.NOTE, body={"message": "m"})
    rig.engine.turn(run_id, Kept.FINISHED)
    positions = [event.position for event in rig.connect("reader").watch_run(run_id)]
    assert positions == list(range(1, 1103))


def test_events_of_others_are_not_told_to_a_data_owner(rig: Rig) -> None:
    run_id = submitted(rig)
    for client in ("clinic", "hospital"):
        rig.state.add_event(run_id, events.ACCEPTED, client_id=client, body={"num_examples": 7})
    rig.engine.turn(run_id, Kept.FINISHED)
    told = {
        name: [event.client_id for event in rig.connect(name).watch_run(run_id) if event.client_id]
        for name in ("auditor", "clinic", "reader")
    }
    assert told == {"auditor": ["clinic", "hospital"], "clinic": ["clinic"], "reader": []}


def test_stopping_and_resuming(rig: Rig) -> None:
    operator = rig.connect("operator")
    run_id = submitted(rig)
    stopped = operator.stop_run(run_id, "budget meeting")
    assert (stopped.status, stopped.reason) == (RunStatus.STOPPED, "budget meeting")
    assert operator.stop_run(run_id).reason == "budget meeting", "again it changes nothing"
    assert operator.resume_run(run_id).status is RunStatus.SUBMITTED
    with pytest.raises(RemoteError, match="only one that was stopped or failed") as refused:
        operator.resume_run(run_id)
    assert code(refused) == "wrong-state"
    assert operator.stop_run(run_id).reason == "stopped by operator"
    rig.engine.turn(run_id, Kept.FINISHED)
    with pytest.raises(RemoteError, match=f"run {run_id} is finished; only one") as refused:
        operator.stop_run(run_id)
    assert code(refused) == "wrong-state"


def test_a_wrong_configuration_is_explained(rig: Rig) -> None:
    with pytest.raises(RemoteError) as refused:
        rig.connect("operator").submit_run(config(federation={"num_round": 3}))
    assert code(refused) == "invalid"
    assert "did you mean federation.num_rounds?" in str(refused.value)
