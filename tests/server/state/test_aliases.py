"""Aliases, withdrawals and replicas; what several do at once ends in one order."""

import json
from dataclasses import replace
from datetime import timedelta

import pytest

from fedpeft.ledger.chain import utc_now
from fedpeft_server.records import ReplicaRecord, RunStatus
from fedpeft_server.state import NotFoundError, State, StateError, WrongStateError
from tests.server.state.racing import at_once
from tests.server.state.samples import FILES, a_run, an_adapter, begin, digest, exported, finish


def actions(state: State) -> list[str]:
    return [entry.action for entry in state.audit(limit=1000)]


def test_an_alias_moves_and_counts(state: State) -> None:
    begin(state)
    first, second = exported(state, 1), exported(state, 2)
    made = state.set_alias("production", first, "ann")
    assert (made.digest, made.generation, made.changed_by) == (first.digest, 1, "ann")
    num_entries = actions(state).count("alias")
    assert state.set_alias("production", first, "bob") == made  # nothing changes
    assert actions(state).count("alias") == num_entries
    moved = state.set_alias("production", second, "bob")
    assert (moved.digest, moved.generation, moved.changed_by) == (second.digest, 2, "bob")
    assert actions(state).count("alias") == num_entries + 1
    state.set_alias("canary", first, "ann")
    assert [alias.name for alias in state.aliases()] == ["canary", "production"]
    assert state.named_adapter("production").digest == second.digest
    assert state.named_adapter(first.digest[:8]).digest == first.digest
    with pytest.raises(NotFoundError, match="no alias 'staging'"):
        state.alias("staging")


@pytest.mark.parametrize(
    "name",
    ["", "A", "a b", "-a", "../x", "a/b", "a\n", "é", "a" * 64, "deadbeef", "0" * 16, "f" * 63],
)
def test_a_name_that_no_alias_has(state: State, name: str) -> None:
    begin(state)
    version = exported(state, 1)
    with pytest.raises(StateError, match="an alias is"):
        state.set_alias(name, version, "ann")
    assert state.aliases() == []


def test_what_cannot_be_deployed(state: State) -> None:
    begin(state)
    finish(state, 1)
    with pytest.raises(WrongStateError, match="not exported and signed"):
        state.set_alias("production", an_adapter(1), "ann")
    state.set_export(an_adapter(1).digest, FILES, run_id="run-1")  # by an older server: unsigned
    with pytest.raises(WrongStateError, match="not exported and signed"):
        state.set_alias("production", an_adapter(1), "ann")
    with pytest.raises(NotFoundError, match="there is no adapter"):
        state.set_alias("production", an_adapter(7), "ann")
    version = exported(state, 2)
    state.withdraw_adapter(version.digest, "ann", "of a test")
    with pytest.raises(WrongStateError, match="was withdrawn"):
        state.set_alias("production", version, "ann")
    assert state.aliases() == []


def test_withdrawn_is_for_ever_and_never_in_use(state: State) -> None:
    begin(state)
    first, second = exported(state, 1), exported(state, 2)
    state.set_alias("production", first, "ann")
    with pytest.raises(WrongStateError, match="alias production points at"):
        state.withdraw_adapter(first.digest[:10], "ann", "")
    state.set_alias("production", second, "ann")
    # By the beginning of its digest, too.
    gone = state.withdraw_adapter(first.digest[:10], "ann", "a fault")
    assert (gone.status, gone.withdrawn_by) == ("withdrawn", "ann")
    num_entries = actions(state).count("withdraw")
    again = state.withdraw_adapter(first.digest, "bob", "")
    assert again.withdrawn_by == "ann"
    assert actions(state).count("withdraw") == num_entries
    with pytest.raises(NotFoundError):
        state.withdraw_adapter("0" * 64, "ann", "")


def test_the_same_tensors_under_another_run_are_withdrawn_too(state: State) -> None:
    begin(state)
    gone = exported(state, 1)
    state.withdraw_adapter(gone.digest, "ann", "a fault")
    state.add_run(a_run("run-2"), "second", "operator")
    state.start_adapter(an_adapter(0, "run-2", digest=gone.digest))
    again = state.adapter(gone.digest)
    assert (again.run_id, again.status, again.withdrawn_by) == ("run-2", "withdrawn", "ann")
    # Neither is it a parent.
    state.add_run(a_run("run-3"), "third", "operator")
    with pytest.raises(WrongStateError, match="nothing is trained from it"):
        state.start_adapter(
            an_adapter(0, "run-3", parent=gone.digest, participants=gone.participants)
        )


def test_what_is_here_is_not_imported(state: State) -> None:
    begin(state)
    known = exported(state, 1)
    run = a_run("run-2", status=RunStatus.FINISHED, num_rounds=1, clients="import")
    imported = an_adapter(1, "run-2", parent=None, export=FILES)
    with pytest.raises(WrongStateError, match="is here already, of run run-1"):
        state.add_finished(run, replace(imported, digest=known.digest), "{}", "key", "ann")
    first = state.add_finished(run, imported, '{"body":{}}', "key", "ann")
    assert first.digest == imported.digest
    # The same import again, whatever it says, is the first one.
    assert state.add_finished(a_run("run-3"), imported, "{}", "key", "ann").run_id == "run-2"
    assert state.set_alias("production", first, "ann").digest == imported.digest


def test_lineage_goes_both_ways(state: State) -> None:
    begin(state)
    for number in (1, 2, 3):
        finish(state, number)
    begin(state, "run-2")
    found = state.lineage(an_adapter(2).digest)
    assert [(a.run_id, a.round) for a in found] == [("run-1", n) for n in range(4)]
    state.add_run(a_run("run-3"), "third", "operator")
    third = an_adapter(
        0, "run-3", parent=an_adapter(1).digest, participants=("north", "south", "west")
    )
    state.start_adapter(third)
    # A sibling is no relative: its lineage is of what it was made from.
    assert [a.run_id for a in state.lineage(third.digest)] == ["run-1", "run-1", "run-3"]
    assert len(state.lineage(an_adapter(1).digest)) == 5
    with pytest.raises(NotFoundError):
        state.lineage("0" * 64)


def a_replica(number: int = 1, **other: object) -> ReplicaRecord:
    replica = ReplicaRecord(
        replica_id=f"{number:016x}",
        alias="production",
        adapter=digest("served"),
        fingerprint_json="{}",
        problem="",
        operated_by="server-1",
        reported_at=utc_now(),
    )
    return replace(replica, **other)  # type: ignore[arg-type]


def test_a_replica_is_as_it_last_said(state: State) -> None:
    state.report_replica(a_replica())
    state.report_replica(a_replica(problem="no memory"))
    state.report_replica(a_replica(alias="canary"))
    assert [r.problem for r in state.replicas("production")] == ["no memory"]
    assert [r.alias for r in state.replicas()] == ["canary", "production"]
    with pytest.raises(StateError, match="operated by another"):
        state.report_replica(a_replica(operated_by="mallory"))
    assert state.replicas("production")[0].operated_by == "server-1"


def test_nobody_fills_the_list_of_replicas_for_others(state: State) -> None:
    for number in range(100):
        state.report_replica(a_replica(number, operated_by="mallory"))
    with pytest.raises(StateError, match="mallory has 100 replicas"):
        state.report_replica(a_replica(100, operated_by="mallory"))
    state.report_replica(a_replica(7, operated_by="mallory", problem="again"))
    state.report_replica(a_replica(200))
    old = utc_now() - timedelta(days=2)
    state.report_replica(a_replica(201, reported_at=old))
    state.report_replica(a_replica(200))
    assert "server-1" in {r.operated_by for r in state.replicas()}
    assert len(state.replicas()) == 101  # the old one was forgotten


def test_those_who_deploy_at_once_come_one_after_the_other(state: State, location: str) -> None:
    begin(state)
    versions = [exported(state, number) for number in (1, 2, 3)]
    with State.open(location) as other:
        calls = [
            lambda each=each, place=place: place.set_alias("production", each, "ann")
            for each in versions
            for place in (state, other)
        ]
        assert at_once(*calls) == [None] * len(calls)
    entries = [
        json.loads(entry.text)["body"]["detail"]
        for entry in state.audit(limit=1000)
        if entry.action == "alias"
    ]
    generations = [entry["generation"] for entry in entries]
    assert generations == list(range(1, len(entries) + 1))
    last = state.alias("production")
    assert last.generation == len(entries)
    assert last.digest == entries[-1]["adapter"]
    befores = [entry["before"] for entry in entries]
    assert befores == ["", *(entry["adapter"] for entry in entries[:-1])]


def test_deploying_and_withdrawing_at_once(state: State, location: str) -> None:
    """One of the two is refused: nothing that was withdrawn is ever pointed at."""
    begin(state)
    with State.open(location) as other:
        # All are made first: nothing is trained from what was withdrawn.
        versions = [exported(state, number) for number in range(1, 7)]
        for number, version in enumerate(versions):
            raised = at_once(
                lambda version=version, number=number: state.set_alias(
                    f"alias-{number}", version, "ann"
                ),
                lambda version=version: other.withdraw_adapter(version.digest, "bob", ""),
            )
            assert [type(e) for e in raised if e is not None] == [WrongStateError]
            pointed = f"alias-{number}" in {alias.name for alias in state.aliases()}
            assert pointed == (state.adapter(version.digest).status == "published")
