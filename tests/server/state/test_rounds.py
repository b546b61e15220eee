"""Updates are taken once, and a round is recorded whole."""

from dataclasses import replace

import pytest

from fedpeft.errors import UnavailableError
from fedpeft_server.state import DuplicateUpdateError, NotFoundError, State, WrongStateError
from tests.server.state.conftest import Execute
from tests.server.state.samples import (
    COHORT,
    a_budget,
    a_round,
    an_adapter,
    an_update,
    begin,
    digest,
    finish,
)


def test_the_first_update_of_a_client_in_a_round_stays(state: State) -> None:
    begin(state)
    assert state.add_update(an_update(), a_budget())
    assert not state.add_update(an_update(), a_budget(epsilon_spent=5.0))
    with pytest.raises(DuplicateUpdateError, match=r"north sent update .* for round 1 of"):
        state.add_update(an_update(update_digest=digest("another")), a_budget(epsilon_spent=5.0))
    assert state.updates("run-1", 1) == [an_update()]
    # What was not taken left no statement of a budget.
    assert state.budgets() == [a_budget()]


def test_updates_come_in_the_order_in_which_they_came(state: State) -> None:
    begin(state)
    begin(state, "run-2")
    for client in ("west", "north", "south"):
        assert state.add_update(an_update(client), None)
    state.add_update(an_update("north", 2), None)
    state.add_update(an_update("north", run_id="run-2"), None)
    assert [update.client_id for update in state.updates("run-1", 1)] == ["west", "north", "south"]
    assert state.updates("run-1", 2) == [an_update("north", 2)]
    assert state.updates("run-1", 3) == []
    with pytest.raises(NotFoundError, match="there is no run 'run-9'"):
        state.add_update(an_update(run_id="run-9"), None)


def test_a_late_update_is_recorded_after_its_round_is_finished(state: State) -> None:
    begin(state)
    finish(state, 1)
    assert state.add_update(an_update(), a_budget())
    assert state.budgets() == [a_budget()]


def test_a_finished_round_comes_back_whole(state: State) -> None:
    begin(state)
    for number in (1, 2):
        state.add_update(an_update("north", number), None)
        finish(state, number)
    assert state.rounds("run-1") == [a_round(1), a_round(2)]
    assert state.rounds("run-9") == []
    newest = state.newest_adapter("run-1")
    assert repr(newest) == repr(an_adapter(2))  # NaN is not equal to itself
    assert state.updates("run-1", 1)  # lineage


def test_a_round_is_finished_once(state: State) -> None:
    begin(state)
    finish(state, 1)
    state.finish_round("run-1", a_round(1, seconds=99.0), an_adapter(1, metrics={}))
    assert state.rounds("run-1") == [a_round(1)]
    other = digest("another adapter")
    with pytest.raises(WrongStateError, match="round 1 of run run-1 made adapter"):
        state.finish_round("run-1", a_round(1, adapter=other), an_adapter(1, digest=other))
    assert len(state.adapters("run-1")) == 2


def test_a_round_follows_the_one_before(state: State) -> None:
    with pytest.raises(NotFoundError, match="there is no run 'run-1'"):
        finish(state, 1)
    begin(state)
    with pytest.raises(WrongStateError, match="goes on with round 1, not with round 2"):
        finish(state, 2)
    with pytest.raises(WrongStateError, match=r"round 1 of run run-1 starts from adapter"):
        state.finish_round("run-1", a_round(1), an_adapter(1, parent=digest("elsewhere")))
    with pytest.raises(WrongStateError, match="not from none"):
        state.finish_round("run-1", a_round(1), an_adapter(1, parent=None))
    assert state.rounds("run-1") == []


def test_a_run_without_a_first_adapter_has_no_round(state: State) -> None:
    begin(state, "run-2")
    state.add_run(replace(state.run("run-2"), run_id="run-1"), "another key", "operator")
    with pytest.raises(WrongStateError, match="goes on with start_adapter"):
        finish(state, 1)


def test_nobody_whose_update_is_in_an_adapter_is_left_out(state: State) -> None:
    begin(state)
    with pytest.raises(WrongStateError, match="leaves out west, who is in the cohort"):
        state.finish_round("run-1", a_round(1), an_adapter(1, participants=COHORT[:2]))
    finish(state, 1)
    with pytest.raises(WrongStateError, match="leaves out west, whose updates are in the version"):
        state.finish_round(
            "run-1", a_round(2, cohort=("north",)), an_adapter(2, participants=("north", "south"))
        )
    state.finish_round("run-1", a_round(2, cohort=()), an_adapter(2))
    assert [r.cohort for r in state.rounds("run-1")] == [COHORT, ()]


def test_a_round_that_fails_half_way_leaves_nothing(state: State, execute: Execute) -> None:
    begin(state)
    with pytest.raises(UnavailableError, match="refused an entry"):
        # Twice in the cohort: the database refuses it after the round itself is written.
        state.finish_round("run-1", a_round(1, cohort=("north", "north")), an_adapter(1))
    for table in ("server_rounds", "server_participation", "server_adapter_participants"):
        assert execute(f"SELECT count(*) FROM {table}") == [(0,)], table
    finish(state, 1)
    assert state.rounds("run-1") == [a_round(1)]


def test_lineage_says_who_is_in_which_round_and_version(state: State, execute: Execute) -> None:
    begin(state)
    state.finish_round(
        "run-1", a_round(1, cohort=("north",)), an_adapter(1, participants=("north",))
    )
    state.finish_round(
        "run-1", a_round(2, cohort=("south",)), an_adapter(2, participants=("north", "south"))
    )
    assert execute("SELECT round, client_id FROM server_participation ORDER BY round") == [
        (1, "north"),
        (2, "south"),
    ]
    of_north = (
        "SELECT digest FROM server_adapters NATURAL JOIN (SELECT run_id, round FROM "
        "server_adapter_participants WHERE client_id = 'north') AS mine ORDER BY round"
    )
    assert execute(of_north) == [(an_adapter(1).digest,), (an_adapter(2).digest,)]
