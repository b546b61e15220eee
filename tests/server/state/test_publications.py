"""Publications of removals, while others deploy, train and withdraw."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from fedpeft.errors import UnavailableError
from fedpeft_server.records import AdapterRecord, RemovalState, RunStatus
from fedpeft_server.state import State, WrongStateError
from fedpeft_server.state.publications import Publication
from tests.server.state.racing import at_once
from tests.server.state.samples import (
    FILES,
    a_removal,
    a_round,
    a_run,
    an_adapter,
    begin,
    digest,
    exported,
)


def verified(state: State, number: int = 1) -> tuple[str, list[AdapterRecord]]:
    """A request whose successor may be published, and the versions that it affects."""
    run_id = f"run-{number}"
    begin(state, run_id)
    versions = [exported(state, each, run_id) for each in (1, 2)]
    removal = a_removal(
        str(number),
        state=RemovalState.VERIFYING,
        adapter=versions[-1].digest,
        run_id=run_id,
        records_digest=digest("records", number),
    )
    return state.add_removal(removal, run_id).request_id, versions


def publication(request_id: str, affected: list[AdapterRecord]) -> Publication:
    """By a job, whose successor is recorded with it."""
    successor = an_adapter(
        1,
        request_id,
        parent=affected[-1].digest,
        participants=affected[-1].participants,
        export=FILES,
    )
    return Publication(
        request_id=request_id,
        successor=successor,
        run=a_run(request_id, clients="removal", status=RunStatus.FINISHED),
        manifest_json='{"body":{}}',
        affected=tuple(version.digest for version in affected),
        receipt_json="{}",
        receipt_digest=digest("receipt", request_id),
    )


def test_nobody_writes_while_it_is_put_together(state: State, location: str) -> None:
    """What a receipt says of aliases and versions is so when it takes effect."""
    request_id, affected = verified(state)
    late = an_adapter(3)
    with State.open(location, busy_timeout_s=0) as other:
        attempts: list[Callable[[], object]] = [
            lambda: other.set_alias("canary", affected[-1], "ann"),
            lambda: other.finish_round("run-1", a_round(3), late),
            lambda: other.withdraw_adapter(affected[-1].digest, "bob", ""),
        ]

        def make() -> Publication:
            for attempt in attempts:
                with pytest.raises(UnavailableError):
                    attempt()
            assert [alias.name for alias in state.aliases()] == ["production"], "it can be read"
            return publication(request_id, affected)

        other.set_alias("production", affected[-1], "ann")
        assert state.publish_removal(request_id, make) is not None
        for attempt in attempts[:2]:
            with pytest.raises(WrongStateError, match="was withdrawn"):
                attempt()
    assert [a.name for a in state.aliases()] == ["production"]
    assert state.alias("production").digest == state.removal(request_id).successor


def test_deploying_while_it_is_published(state: State, location: str) -> None:
    """Whoever comes before is moved along, whoever comes after is refused."""
    with State.open(location) as other:
        for number in range(1, 5):
            request_id, affected = verified(state, number)
            made = publication(request_id, affected)
            raised = at_once(
                lambda request_id=request_id, made=made: state.publish_removal(
                    request_id, lambda: made
                ),
                *(
                    lambda version=version, place=place, name=f"{number}-{n}-{m}": place.set_alias(
                        name, version, "ann"
                    )
                    for n, version in enumerate(affected)
                    for m, place in enumerate((state, other))
                ),
            )
            assert raised[0] is None
            assert {type(error) for error in raised[1:]} <= {type(None), WrongStateError}
            pointed = [a for a in state.aliases() if a.name.startswith(f"{number}-")]
            assert len(pointed) == raised[1:].count(None)
            assert {alias.digest for alias in pointed} <= {made.successor.digest}
            assert {state.adapter(v.digest).status for v in affected} == {"withdrawn"}


def test_a_successor_that_was_withdrawn_takes_no_place(state: State) -> None:
    """Rounds made it, and an operator withdrew it before it was published."""
    request_id, affected = verified(state)
    begin(state, "again")
    successor = exported(state, 1, "again")
    state.withdraw_adapter(successor.digest, "bob", "")
    made = replace(publication(request_id, affected), successor=successor, run=None)
    with pytest.raises(WrongStateError, match="the successor, was withdrawn by bob"):
        state.publish_removal(request_id, lambda: made)
    assert state.removal(request_id).state is RemovalState.VERIFYING
    assert state.adapter(affected[-1].digest).status == "published"


def test_what_cannot_be_put_together_changes_nothing(state: State) -> None:
    request_id, affected = verified(state)

    def make() -> Publication:
        raise WrongStateError("no")

    before = state.audit_head()
    with pytest.raises(WrongStateError, match="no"):
        state.publish_removal(request_id, make)
    assert state.audit_head() == before
    state.set_alias("production", affected[-1], "ann")
    state.publish_removal(request_id, lambda: publication(request_id, affected))
    head = state.audit_head()
    assert state.publish_removal(request_id, make) is None, "it was published before"
    assert state.audit_head() == head
