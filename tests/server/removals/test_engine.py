"""Removal requests from planned to their end: real Ray, and what it does killed."""

import signal
from datetime import UTC, datetime, timedelta

import psutil
import pytest

from fedpeft.errors import RemoteError, UnavailableError
from fedpeft.ledger.chain import utc_now
from fedpeft.registry.manifest import KIND as MANIFEST
from fedpeft.registry.manifest import Manifest
from fedpeft_server.records import RemovalRecord, RemovalState, ReplicaRecord
from fedpeft_server.removals import events
from fedpeft_server.removals.publish import Publisher
from fedpeft_server.state import State
from fedpeft_server.state.publications import Publication
from tests.server.removal_requests import trained
from tests.server.removals import works
from tests.server.removals.parts import Bench, descendants

_S = RemovalState
pytestmark = pytest.mark.timeout(300)


def deployed(bench: Bench, **settings: object) -> str:
    """A version that the alias `production` points at."""
    adapter = trained(bench.rig, **settings)  # type: ignore[arg-type]
    bench.rig.connect("operator").deploy_adapter(adapter, "production")
    return adapter


def kinds(bench: Bench, request_id: str) -> list[str]:
    return [event.kind for event in bench.rig.state.removal_events(request_id)]


def check_published(bench: Bench, request_id: str, adapter: str) -> None:
    """It ended once: one successor, one receipt, everything affected withdrawn, the alias moved."""
    state = bench.rig.state
    removal = state.removal(request_id)
    assert removal.state is _S.PUBLISHED, removal.reason
    receipt = bench.receipt(request_id)
    assert receipt.successor == removal.successor
    assert adapter in receipt.affected
    for digest in receipt.affected:
        assert state.adapter(digest).status == "withdrawn"
        assert state.adapter(digest).withdrawn_by == request_id
    assert state.alias("production").digest == removal.successor
    made = [a for a in state.adapters() if a.run_id == request_id]
    assert [a.digest for a in made] == [removal.successor]
    published = [e for e in state.audit() if e.action == "removal" and e.outcome == "ok"]
    assert [e.subject for e in published].count(request_id) == 1
    assert kinds(bench, request_id).count(events.PUBLISHED) == 1
    assert removal.job_private_key is None


@pytest.fixture
def waiting(bench: Bench) -> Bench:
    bench.prepare_jobs()
    return bench


def test_a_request_is_published_with_a_receipt(bench: Bench) -> None:
    adapter = deployed(bench)
    with bench.engine(works.quick):
        request_id = bench.ask("production")
        sealed = bench.rig.state.removal(request_id).sealed
        bench.ended(request_id)
        check_published(bench, request_id, adapter)
    assert sealed is not None
    assert bench.rig.state.removal(request_id).sealed is None
    assert not bench.rig.artifacts.has(sealed), "the records are destroyed"
    successor = bench.rig.state.named_adapter("production")
    assert successor.manifest_json is not None
    manifest = Manifest.from_body(bench.trust.verify(MANIFEST, successor.manifest_json))
    assert (manifest.removal, manifest.method) == (request_id, "loku")
    assert manifest.parents == (adapter,)
    told = kinds(bench, request_id)
    assert told.index(events.ATTEMPT) < told.index(events.GATE) < told.index(events.PUBLISHED)
    log = [entry.text for entry in bench.rig.state.audit(limit=10**6)]
    told = (
        bench.rig.state.removals(),
        [bench.rig.state.removal_events(made.request_id) for made in bench.rig.state.removals()],
    )
    assert "Basil" not in f"{bench.events} {log} {told}"


def test_what_fails_at_the_gate_is_not_published(bench: Bench) -> None:
    adapter = deployed(bench)
    with bench.engine(works.fails_at_the_gate):
        removal = bench.ended(bench.ask("production"))
    assert removal.state is _S.FAILED
    assert "confidence is too high" in removal.reason
    assert removal.receipt_json is None
    assert bench.rig.state.adapter(adapter).status == "published"
    assert bench.rig.state.alias("production").digest == adapter
    assert removal.job_private_key is None


@pytest.mark.slow
def test_an_error_of_ours_is_told_and_another_ones_text_is_not(bench: Bench) -> None:
    deployed(bench)
    with bench.engine(works.refused):
        reason = bench.ended(bench.ask("production")).reason
        assert reason == "the adapter does not fit the model"
    with bench.engine(works.quotes):
        reason = bench.ended(bench.ask("production")).reason
        assert "the records cannot be used" in reason
    with bench.engine(works.breaks):
        removal = bench.ended(bench.ask("production"))
    assert removal.state is _S.FAILED
    assert removal.reason == "RuntimeError"
    assert "Basil" not in str(bench.events)


def test_the_earliest_deadline_goes_first_one_at_a_time(waiting: Bench) -> None:
    deployed(waiting)
    now = datetime.now(UTC)
    late = waiting.ask("production", deadline=now + timedelta(days=2))
    never = waiting.ask("production")
    soon = waiting.ask("production", deadline=now + timedelta(days=1))
    with waiting.engine(works.waits, max_jobs=1):
        waiting.began(soon)
        while events.PROGRESS not in kinds(waiting, soon):
            seen = waiting.rig.state.removal_events(soon)[-1].position
            assert waiting.rig.state.wait_removal_events(soon, seen, 60)
        states = [waiting.rig.state.removal(r).state for r in (soon, late, never)]
        assert states == [_S.RUNNING, _S.PLANNED, _S.PLANNED]
        waiting.go_on()
        for request_id in (soon, late, never):
            assert waiting.ended(request_id).state is _S.PUBLISHED
    ended = [e.subject for e in waiting.rig.state.audit() if e.action == "removal"]
    assert ended == [soon, late, never]
    # Each began from the successor of the one before: nothing comes back.
    chain = [waiting.rig.state.removal(r).successor for r in (soon, late, never)]
    parents = [waiting.rig.state.adapter(str(s)).parent for s in chain]
    assert parents[1:] == chain[:-1]


@pytest.mark.slow
def test_a_job_is_cancelled_in_the_middle(waiting: Bench) -> None:
    adapter = deployed(waiting)
    with waiting.engine(works.waits) as engine:
        request_id = waiting.ask("production")
        pid = waiting.began(request_id)
        process = psutil.Process(pid)
        engine.cancel(request_id, "changed my mind")
        removal = waiting.ended(request_id)
        assert (removal.state, removal.reason) == (_S.CANCELLED, "changed my mind")
        log = [entry.text for entry in waiting.rig.state.audit(limit=10**6)]
        assert "changed my mind" not in f"{log} {waiting.events}", "a person's own words"
        process.wait(60)
        assert waiting.rig.state.alias("production").digest == adapter
        # And the next one has room.
        waiting.go_on()
        other = waiting.ask("production")
        assert waiting.ended(other).state is _S.PUBLISHED


def test_a_worker_that_is_killed_costs_an_attempt(waiting: Bench) -> None:
    adapter = deployed(waiting)
    with waiting.engine(works.waits):
        request_id = waiting.ask("production")
        psutil.Process(waiting.began(request_id)).send_signal(signal.SIGKILL)
        waiting.began(request_id, attempt=2)
        waiting.go_on()
        assert waiting.ended(request_id).num_attempts == 2
        check_published(waiting, request_id, adapter)
    assert events.LOST in kinds(waiting, request_id)


@pytest.mark.slow
def test_a_request_whose_workers_are_lost_again_and_again_fails(waiting: Bench) -> None:
    adapter = deployed(waiting)
    with waiting.engine(works.waits, max_attempts=2):
        request_id = waiting.ask("production")
        for attempt in (1, 2):
            psutil.Process(waiting.began(request_id, attempt)).send_signal(signal.SIGKILL)
        removal = waiting.ended(request_id)
    assert removal.state is _S.FAILED
    assert "2 attempts" in removal.reason
    assert waiting.rig.state.alias("production").digest == adapter


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("driver", marks=pytest.mark.slow),
        pytest.param("gcs_server", marks=pytest.mark.slow),
        pytest.param("raylet", marks=pytest.mark.slow),
    ],
)
def test_ray_that_is_killed_is_started_again(waiting: Bench, name: str) -> None:
    adapter = deployed(waiting)
    with waiting.engine(works.waits) as engine:
        request_id = waiting.ask("production")
        waiting.began(request_id)
        assert engine._driver is not None
        driver = psutil.Process(engine._driver.pid)
        of_ray = driver.children(recursive=True)
        victim = driver if name == "driver" else next(p for p in of_ray if name in p.name())
        victim.send_signal(signal.SIGKILL)
        waiting.began(request_id, attempt=2)
        waiting.go_on()
        waiting.ended(request_id)
        check_published(waiting, request_id, adapter)
        psutil.wait_procs(of_ray, timeout=60)
        assert not [p for p in of_ray if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
def test_a_coordinator_that_ended_leaves_its_jobs_to_the_next(waiting: Bench) -> None:
    adapter = deployed(waiting)
    with waiting.engine(works.waits) as engine:
        request_id = waiting.ask("production")
        waiting.began(request_id)
        assert engine._driver is not None
        assert engine._driver.pid is not None
        of_ray = descendants(engine._driver.pid)
    psutil.wait_procs(of_ray, timeout=60)
    assert waiting.rig.state.removal(request_id).state is _S.RUNNING
    waiting.go_on()
    with waiting.engine(works.waits):
        waiting.ended(request_id)
        check_published(waiting, request_id, adapter)


def test_an_artifact_store_that_is_full_costs_no_second_job(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = deployed(bench)
    put, full, attempts = bench.rig.artifacts.put, [True, True], list[int]()

    def failing(content: bytes) -> str:
        if content.startswith(b"successor") and full:
            full.pop()
            [removal] = bench.rig.state.removals()
            attempts.append(removal.num_attempts)
            raise UnavailableError("the disk is full")
        return put(content)

    with bench.engine(works.quick):
        request_id = bench.ask("production")
        monkeypatch.setattr(bench.rig.artifacts, "put", failing)
        bench.ended(request_id)
        check_published(bench, request_id, adapter)
    assert not full
    # Once there is a result: before, a worker that is lost on a busy machine is another matter.
    assert attempts == [bench.rig.state.removal(request_id).num_attempts] * 2


@pytest.mark.slow
def test_replicas_that_do_not_follow_are_told_of(bench: Bench) -> None:
    adapter = deployed(bench)
    replica = ReplicaRecord(
        replica_id="ab" * 8,
        alias="production",
        adapter=adapter,
        fingerprint_json="",
        problem="",
        operated_by="reader",
        reported_at=utc_now() + timedelta(minutes=5),  # it reports on, whatever Ray takes
    )
    bench.rig.state.report_replica(replica)
    with bench.engine(works.quick):
        request_id = bench.ask("production")
        bench.ended(request_id)
        while events.UNCONFIRMED not in kinds(bench, request_id):
            seen = bench.rig.state.removal_events(request_id)[-1].position
            assert bench.rig.state.wait_removal_events(request_id, seen, 60)


@pytest.mark.slow
def test_the_same_result_twice_is_published_once(bench: Bench) -> None:
    adapter = deployed(bench)
    with bench.engine(works.quick) as engine:
        request_id = bench.ask("production")
        bench.ended(request_id)
        removal = bench.rig.state.removal(request_id)
        again = bench.rig.state.publish_removal(
            request_id, lambda: engine._publisher.of_job(removal)
        )
        assert again is None
        check_published(bench, request_id, adapter)
        with pytest.raises(RemoteError) as refused:
            bench.rig.connect("clinic").cancel_removal(request_id, "too late")
    assert refused.value.code == "wrong-state"


def test_nobody_deploys_between_receipt_and_publication(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The receipt names every alias that was moved, at whichever moment it was deployed."""
    adapter = deployed(bench)
    tried: list[str] = []
    put_together = Publisher.of_job

    def slowly(self: Publisher, removal: RemovalRecord) -> Publication:
        made = put_together(self, removal)
        with pytest.raises(UnavailableError):
            other.set_alias("late", other.adapter(adapter), "ann")
        tried.append(removal.request_id)
        return made

    monkeypatch.setattr(Publisher, "of_job", slowly)
    with (
        State.open(bench.rig.folder / "server.db", busy_timeout_s=0) as other,
        bench.engine(works.quick),
    ):
        request_id = bench.ask("production")
        bench.ended(request_id)
        check_published(bench, request_id, adapter)
    assert tried == [request_id]
    assert list(bench.receipt(request_id).aliases) == ["production"]
    assert [alias.name for alias in bench.rig.state.aliases()] == ["production"]
