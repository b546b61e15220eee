"""Whether replicas serve what was published: by their outputs, in whatever precision they serve."""

import pytest

from fedpeft.ledger.chain import utc_now
from fedpeft.registry.fingerprint import Fingerprint
from fedpeft_server.records import RemovalState, ReplicaRecord
from fedpeft_server.removals import events
from fedpeft_server.removals.confirm import Confirmation
from tests.server.removal_requests import trained
from tests.server.removals import works
from tests.server.removals.parts import LONG_S, Bench

BEFORE, AFTER = (-1.0, -2.0, -3.0), (-1.4, -2.0, -3.5)
BEGAN = utc_now()
NEW, OLD = "a" * 64, "b" * 64


def fingerprint(*values: float) -> str:
    return Fingerprint(values=values).to_json()


def problem(adapter: str, fingerprint_json: str, told: str = "") -> str:
    confirmation = Confirmation(
        request_id="0" * 16,
        aliases=["production"],
        adapter=NEW,
        fingerprint_json=fingerprint(*AFTER),
        before_json=fingerprint(*BEFORE),
        until_s=0.0,
        since=BEGAN,
    )
    replica = ReplicaRecord(
        replica_id="ab" * 8,
        alias="production",
        adapter=adapter,
        fingerprint_json=fingerprint_json,
        problem=told,
        operated_by="reader",
        reported_at=utc_now(),
    )
    return confirmation._problem(replica)


def test_the_successors_outputs_confirm() -> None:
    assert problem(NEW, fingerprint(*AFTER)) == ""


def test_outputs_in_half_precision_confirm() -> None:
    assert problem(NEW, fingerprint(-1.38, -2.03, -3.46)) == ""


@pytest.mark.parametrize(
    "values", [BEFORE, (-1.02, -1.99, -3.01), (-1.2, -2.0, -3.25), (9.0, 9.0, 9.0)]
)
def test_a_swap_that_did_nothing_or_something_else_does_not(values: tuple[float, ...]) -> None:
    assert "not those of the successor" in problem(NEW, fingerprint(*values))


def test_the_old_digest_does_not_confirm() -> None:
    assert "serves bbbb" in problem(OLD, fingerprint(*AFTER))
    assert problem(OLD, fingerprint(*AFTER), told="no memory") == "no memory"


@pytest.mark.parametrize("text", ["", "{", '{"version": 2}'])
def test_what_cannot_be_read_does_not(text: str) -> None:
    assert "cannot be read" in problem(NEW, text)


# --- after a coordinator that died


def told(bench: Bench, request_id: str) -> list[str]:
    found = [event.kind for event in bench.rig.state.removal_events(request_id)]
    return [kind for kind in found if kind in (events.CONFIRMED, events.UNCONFIRMED)]


def wait_told(bench: Bench, request_id: str) -> None:
    after = 0
    while not told(bench, request_id):
        news = bench.rig.state.wait_removal_events(request_id, after, LONG_S)
        assert news, "nobody told whether it is served"
        after = news[-1].position


def published_and_killed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> str:
    """A request whose coordinator died between its publication and the word of the replicas."""
    adapter = trained(bench.rig)
    bench.rig.connect("operator").deploy_adapter(adapter, "production")
    with monkeypatch.context() as patched:
        patched.setattr(Confirmation, "settle", lambda *_: False)
        with bench.engine(works.quick):
            request_id = bench.ask("production")
            assert bench.ended(request_id).state is RemovalState.PUBLISHED
    assert not told(bench, request_id)
    return request_id


def test_the_next_coordinator_tells_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    request_id = published_and_killed(bench, monkeypatch)
    for _ in range(2):
        with bench.engine(works.quick):
            wait_told(bench, request_id)
    assert told(bench, request_id) == [events.CONFIRMED]


def test_an_alias_that_was_moved_on_since_is_nobodys_business(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    request_id = published_and_killed(bench, monkeypatch)
    bench.rig.connect("operator").deploy_adapter(trained(bench.rig), "production")
    with bench.engine(works.quick):
        later = bench.ask("production")
        wait_told(bench, later)
    assert not told(bench, request_id)
    assert told(bench, later) == [events.CONFIRMED]
