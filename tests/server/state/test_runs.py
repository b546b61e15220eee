"""Runs are submitted once, and their plan is fixed."""

from dataclasses import replace

import pytest

from fedpeft.errors import PrivacyError
from fedpeft_server.records import RunPlanRecord, RunStatus
from fedpeft_server.state import NotFoundError, State, StateError, WrongStateError
from tests.server.state.samples import a_plan, a_run, digest


def test_a_run_comes_back_as_it_was_submitted(state: State) -> None:
    run = a_run(
        clients="simulated", held_out=digest("rows"), held_out_suffix=".csv", name="größer\n"
    )
    assert state.add_run(run, "key", "operator") == run
    assert state.run("run-1") == run
    assert isinstance(state.run("run-1").status, RunStatus)


def test_the_same_key_of_the_same_submitter_is_the_same_run(state: State) -> None:
    first = state.add_run(a_run("run-1"), "key", "operator")
    assert state.add_run(a_run("run-2"), "key", "operator") == first
    state.set_run_status("run-1", RunStatus.RUNNING)
    assert state.add_run(a_run("run-2"), "key", "operator").status is RunStatus.RUNNING
    state.add_run(a_run("run-3"), "key", "another operator")
    state.add_run(a_run("a-run-4"), "another key", "operator")
    assert [run.run_id for run in state.runs()] == ["run-1", "run-3", "a-run-4"]
    with pytest.raises(WrongStateError, match="there is a run run-1 already"):
        state.add_run(a_run("run-1"), "third key", "operator")
    with pytest.raises(StateError, match="idempotency key"):
        state.add_run(a_run("run-5"), "", "operator")


def test_a_status_changes_only_from_what_was_expected(state: State) -> None:
    state.add_run(a_run(), "key", "operator")
    going = state.set_run_status("run-1", RunStatus.RUNNING, expected={RunStatus.SUBMITTED})
    assert going == state.run("run-1") == a_run(status=RunStatus.RUNNING)
    with pytest.raises(
        WrongStateError, match="run-1 is running, which had to be one of failed, stopped"
    ):
        state.set_run_status(
            "run-1", RunStatus.RUNNING, expected=(RunStatus.STOPPED, RunStatus.FAILED)
        )
    state.set_run_status("run-1", RunStatus.FAILED, reason="no quorum")
    assert state.run("run-1").reason == "no quorum"
    # The reason belongs to the status.
    assert state.set_run_status("run-1", RunStatus.RUNNING).reason == ""


def test_a_plan_is_fixed_once_to_the_last_bit(state: State) -> None:
    state.add_run(a_run(), "key", "operator")
    assert state.plan("run-1") is None
    state.save_plan("run-1", a_plan())
    state.save_plan("run-1", a_plan())
    assert state.plan("run-1") == a_plan()
    first, *rest = a_plan().participants
    for other in (
        replace(a_plan(), participants=(replace(first, noise_multiplier=0.3333), *rest)),
        replace(a_plan(), participants=tuple(reversed(a_plan().participants))),
        replace(a_plan(), cohorts=a_plan().cohorts[:1]),
        replace(a_plan(), terms_json="{}"),
    ):
        with pytest.raises(WrongStateError, match="run run-1 has another plan"):
            state.save_plan("run-1", other)
    assert state.plan("run-1") == a_plan()


def test_a_plan_without_privacy(state: State) -> None:
    state.add_run(a_run(), "key", "operator")
    participant = replace(a_plan().participants[0], noise_multiplier=None)
    plan = RunPlanRecord(terms_json="{}", participants=(participant,), cohorts=())
    state.save_plan("run-1", plan)
    assert state.plan("run-1") == plan


@pytest.mark.parametrize("name", ["noise_multiplier", "expected_batch_size", "weight"])
@pytest.mark.parametrize("value", [float("nan"), -1.0])
def test_numbers_of_a_plan_that_are_none(name: str, value: float) -> None:
    with pytest.raises(PrivacyError, match=name):
        replace(a_plan().participants[0], **{name: value})


def test_runs_that_are_not_there(state: State) -> None:
    for call in (
        lambda: state.run("run-9"),
        lambda: state.set_run_status("run-9", RunStatus.FAILED),
        lambda: state.save_plan("run-9", a_plan()),
        lambda: state.plan("run-9"),
    ):
        with pytest.raises(NotFoundError, match="there is no run 'run-9'"):
            call()
    assert state.runs() == []


@pytest.mark.parametrize("location", ["postgresql"], indirect=True)  # SQLite holds any text
def test_text_that_a_database_cannot_hold_is_no_outage(state: State) -> None:
    with pytest.raises(StateError, match="cannot hold a value"):
        state.add_run(a_run(name="a\x00b"), "key", "operator")
    assert state.runs() == []


def test_a_number_that_a_database_cannot_hold_is_no_outage(state: State) -> None:
    with pytest.raises(StateError, match="cannot hold a value"):
        state.add_run(a_run(num_rounds=2**70), "key", "operator")
    assert state.runs() == []
