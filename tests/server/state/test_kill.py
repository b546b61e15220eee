"""kill -9 at random moments: nothing is half done, and what was answered is there."""

import random

import pytest

from fedpeft_server.records import RemovalState
from fedpeft_server.state import State
from fedpeft_server.state.removals import ENDED
from tests.processes import kill_a_child, read, running
from tests.server.state.conftest import Execute
from tests.server.state.samples import COHORT, begin

STEPS = ("enrolled", "updated", "finished", "audited", "removed")


def kill_again_and_again(
    location: str, execute: Execute, *, num_kills: int, seed: int, order: str = "right"
) -> dict[str, int]:
    """Kills a worker so often and checks the state after each; returns what the kills hit."""
    dice = random.Random(seed)
    hits = dict.fromkeys(STEPS, 0)
    answered: set[str] = set()
    with State.open(location) as state:
        begin(state)
    with running("tests.server.state.worker", "nursery", location, order) as nursery:
        assert read(nursery) == "ready"
        for _ in range(num_kills):
            lines = kill_a_child(nursery, dice, most_lines=9, within_s=0.02)
            hits[lines[-1].split()[0]] += 1
            answered |= set(lines)
            with State.open(location, busy_timeout_s=60) as state:
                check(state, execute, answered)
    return hits


def check(state: State, execute: Execute, answered: set[str]) -> None:
    """Whatever belongs together is there together, and whatever was answered is there."""
    log = state.verify_audit()
    # Enrolment: the client, its certificate, and the token that is used up.
    clients = {client.client_id for client in state.clients()}
    used = "SELECT client_id FROM server_invitations WHERE used_at IS NOT NULL"
    for query in (used, "SELECT client_id FROM server_certificates"):
        assert sorted(execute(query)) == sorted((client,) for client in clients), query
    # Updates: each with its budget, and a budget lower than before with its entry in the log.
    updates = set(execute("SELECT round, client_id FROM server_updates"))
    assert updates == set(execute("SELECT round, client_id FROM server_budgets"))
    lower = "SELECT count(*) FROM server_budgets WHERE standing <> position"
    noted = "SELECT count(*) FROM server_audit WHERE kind = 'state-budget'"
    assert execute(lower) == execute(noted)
    # Rounds: each with its adapter, its cohort, and the participants of the adapter.
    rounds, adapters = state.rounds("run-1"), state.adapters("run-1")
    assert [r.round for r in rounds] == list(range(1, len(rounds) + 1))
    assert [a.digest for a in adapters[1:]] == [r.adapter for r in rounds]
    assert all(r.cohort == COHORT for r in rounds)
    assert all(a.participants == COHORT for a in adapters[1:])

    # Removals: planned with their records, without a key at their end, every state told, and every
    # end in the log.
    removals = state.removals()
    for removal in removals:
        assert (removal.sealed is None) == (removal.state is RemovalState.RECEIVED)
        assert (removal.job_private_key is None) == (removal.state in ENDED)
        told = [event.body["state"] for event in state.removal_events(removal.request_id)]
        way = ["running", "verifying", "failed"]
        reached = way.index(removal.state) + 1 if removal.state in way else 0
        assert told == way[:reached]
    ends = [e.subject for e in state.audit(limit=log.count) if e.action == "removal"]
    assert sorted(ends) == sorted(r.request_id for r in removals if r.state in ENDED)

    done = {f"enrolled {client}" for client in clients}
    done |= {f"updated {number} {client}" for number, client in updates}
    done |= {f"finished {r.round}" for r in rounds}
    done |= {f"audited {e.subject}" for e in state.audit(limit=log.count) if e.actor == "worker"}
    done |= {f"removed {int(r.request_id)}" for r in removals if r.state in ENDED}
    assert answered <= done


def test_kill_12_times(location: str, execute: Execute) -> None:
    kill_again_and_again(location, execute, num_kills=12, seed=1)


@pytest.mark.slow
def test_kill_80_times(location: str, execute: Execute) -> None:
    hits = kill_again_and_again(location, execute, num_kills=80, seed=2)
    assert all(hits.values()), f"the kills were not spread over the steps: {hits}"


@pytest.mark.parametrize("location", ["sqlite"], indirect=True)
def test_the_kills_find_what_is_no_transaction(location: str, execute: Execute) -> None:
    with pytest.raises(AssertionError, match="assert"):
        kill_again_and_again(location, execute, num_kills=40, seed=3, order="wrong")
