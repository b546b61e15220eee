"""What a client's own job sends: taken once, also by a coordinator that died while it took it."""

from typing import Any

import pytest

from fedpeft.errors import AdapterError
from fedpeft.unlearning.order import JobResult
from fedpeft_server.records import RemovalState
from fedpeft_server.removals import engine as engine_module
from fedpeft_server.removals.engine import RemovalJobs
from fedpeft_server.removals.job import JobOutcome, JobSpec
from fedpeft_server.state import State, WrongStateError
from tests.server.removal_requests import trained
from tests.server.removals import works
from tests.server.removals.parts import Bench

HERE = {"place": "client"}
STATED = {
    "epsilon": 0.9,
    "epsilon_spent": 4.25,
    "delta": 1e-5,
    "noise_multiplier": 4.5,
    "sampling_prob": 0.25,
    "num_steps": 20,
    "l2_clip_norm": 1.0,
}


@pytest.fixture(autouse=True)
def believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of this bench are none; that they are looked at is shown by real processes."""
    monkeypatch.setattr(engine_module, "check_submitted", lambda *_: None)


def outcome(bench: Bench, request_id: str, *, private: bool = False) -> JobOutcome:
    """What the client would send."""
    job = bench.rig.connect("clinic").get_removal_job(request_id)
    spec = JobSpec(
        request_id=request_id,
        order_json=job.order_json,
        sealed=b"",
        private_key=b"",
        adapter=job.adapter,
    )
    made = works.outcome(spec)
    if not private:
        return made
    stated = dict(made.result) | {"gate": None, "seconds": {}, "privacy": STATED}
    JobResult.model_validate(stated)
    return JobOutcome(result=stated, adapter=made.adapter, files=made.files)


def submit(engine: RemovalJobs, request_id: str, made: JobOutcome) -> None:
    engine.submit(request_id, made.adapter, made.result, made.files)


def deployed(bench: Bench, **options: Any) -> str:
    adapter = trained(bench.rig, **options)
    bench.rig.connect("operator").deploy_adapter(adapter, "production")
    return adapter


def test_it_is_published_with_who_measured(bench: Bench) -> None:
    adapter = deployed(bench)
    with bench.engine(works.quick) as engine:
        request_id = bench.ask("production", **HERE)
        made = outcome(bench, request_id)
        submit(engine, request_id, made)
        assert bench.ended(request_id).state is RemovalState.PUBLISHED
        submit(engine, request_id, made)  # the answer was lost on its way
    receipt = bench.receipt(request_id)
    assert (receipt.measured_by, receipt.adapter) == ("client", adapter)
    assert bench.rig.state.alias("production").digest == receipt.successor


def test_a_private_one_is_charged_and_no_figure_is_in_the_receipt(bench: Bench) -> None:
    deployed(bench, epsilon=1.5)  # 3 after two rounds
    with bench.engine(works.quick) as engine:
        request_id = bench.ask("production", **HERE, private_job=True)
        submit(engine, request_id, outcome(bench, request_id, private=True))
        assert bench.ended(request_id).state is RemovalState.PUBLISHED
    receipt = bench.receipt(request_id)
    assert (receipt.guarantee, receipt.gate, receipt.measured_by) == ("charged", None, "nobody")
    assert receipt.epsilon["clinic"].epsilon == 4.25
    assert receipt.privacy is not None
    assert receipt.privacy.noise_multiplier == 4.5
    successor = bench.rig.state.adapter(receipt.successor)
    assert successor.epsilon["clinic"] == 4.25
    kinds = {event.kind for event in bench.rig.state.removal_events(request_id, 0)}
    assert "gate" not in kinds


def test_an_epsilon_never_goes_down(bench: Bench) -> None:
    """Whatever a client states that has lost its ledger."""
    adapter = deployed(bench, epsilon=9.5)
    before = bench.rig.state.adapter(adapter).epsilon["clinic"]
    with bench.engine(works.quick) as engine:
        request_id = bench.ask("production", **HERE, private_job=True)
        submit(engine, request_id, outcome(bench, request_id, private=True))
        assert bench.ended(request_id).state is RemovalState.PUBLISHED
    assert bench.receipt(request_id).epsilon["clinic"].epsilon == before > 9


def test_killed_while_it_was_taken(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attempt is counted, the result is not stored: the client sends it again."""
    deployed(bench)
    request_id = bench.ask("production", **HERE)
    made = outcome(bench, request_id)

    def dying(*_: Any) -> None:
        raise SystemExit

    with bench.engine(works.quick) as engine:
        with monkeypatch.context() as patched:
            patched.setattr(State, "store_result", dying)
            with pytest.raises(SystemExit):
                submit(engine, request_id, made)
        assert bench.rig.state.removal(request_id).state is RemovalState.RUNNING
    with bench.engine(works.quick) as engine:
        assert outcome(bench, request_id).result == made.result, "its job is still given out"
        submit(engine, request_id, made)
        assert bench.ended(request_id).state is RemovalState.PUBLISHED
    assert bench.rig.state.removal(request_id).num_attempts == 1


def test_what_the_gate_failed_is_not_published(bench: Bench) -> None:
    adapter = deployed(bench)
    request_id = bench.ask("production", **HERE)
    made = outcome(bench, request_id)
    job = bench.rig.connect("clinic").get_removal_job(request_id)
    spec = JobSpec(
        request_id=request_id,
        order_json=job.order_json,
        sealed=b"",
        private_key=b"",
        adapter=b"",
    )
    with bench.engine(works.quick) as engine:
        submit(engine, request_id, works.outcome(spec, passed=False))
        assert bench.ended(request_id).state is RemovalState.FAILED
        with pytest.raises(WrongStateError):
            submit(
                engine,
                request_id,
                JobOutcome(result=dict(made.result) | {"digest": "1" * 64}, adapter=b"", files={}),
            )
    assert bench.rig.state.alias("production").digest == adapter


def test_what_is_refused_leaves_the_request_as_it_was(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployed(bench)
    request_id = bench.ask("production", **HERE)

    def refused(*_: Any) -> None:
        raise AdapterError("it does not fit")

    monkeypatch.setattr(engine_module, "check_submitted", refused)
    with bench.engine(works.quick) as engine, pytest.raises(AdapterError):
        submit(engine, request_id, outcome(bench, request_id))
    removal = bench.rig.state.removal(request_id)
    assert (removal.state, removal.num_attempts) == (RemovalState.PLANNED, 0)


def test_a_job_of_the_servers_takes_nothing_from_outside(bench: Bench) -> None:
    deployed(bench)
    mine = bench.ask("production", **HERE)
    made = outcome(bench, mine)
    with bench.engine(works.quick) as engine:
        request_id = bench.ask("production")
        with pytest.raises(WrongStateError):
            submit(engine, request_id, made)
