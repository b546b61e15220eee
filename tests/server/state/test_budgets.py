"""Budgets as clients stated them; what is shown never goes down."""

import json
from typing import Any

import pytest

from fedpeft.errors import PrivacyError
from fedpeft_server.records import BudgetRecord
from fedpeft_server.state import State
from tests.server.state.conftest import Execute
from tests.server.state.samples import a_budget, an_update, begin, digest


def tell(state: State, *budgets: BudgetRecord) -> None:
    for budget in budgets:
        number = 1 + len(state.updates("run-1", budget.round))
        update = an_update(budget.client_id, budget.round, update_digest=digest(number))
        assert state.add_update(update, budget)


def test_the_newest_statement_per_client_and_data_set_is_shown(state: State) -> None:
    begin(state)
    other = a_budget("south", 3, dataset=digest("other rows"), epsilon_spent=0.01)
    tell(state, a_budget("south", 1), a_budget("north", 1), a_budget("south", 2), other)
    by_dataset = sorted([a_budget("south", 2), other], key=lambda budget: budget.dataset)
    assert state.budgets() == [a_budget("north", 1), *by_dataset]
    assert state.budgets("south") == by_dataset
    assert state.budgets("west") == []
    assert state.audit() == []


def test_a_budget_that_was_changed_shows_though_nothing_was_spent(state: State) -> None:
    begin(state)
    raised = a_budget("north", 2, epsilon_spent=0.1, epsilon_budget=9.0)
    tell(state, a_budget("north", 1), raised)
    assert state.budgets() == [raised]
    assert state.audit() == []


def test_a_lower_statement_does_not_hide_a_higher_one_and_is_audited(state: State) -> None:
    begin(state)
    higher = a_budget("north", 1, epsilon_spent=2.0)
    tell(state, higher, a_budget("north", 2, epsilon_spent=0.5))
    assert state.budgets() == [higher]
    tell(state, a_budget("north", 3, epsilon_spent=1.9))
    assert state.budgets() == [higher]
    tell(state, again := a_budget("north", 4, epsilon_spent=2.1))
    assert state.budgets() == [again]
    audited = state.audit()
    assert [(entry.actor, entry.action, entry.outcome) for entry in audited] == [
        ("north", "state-budget", "lower-than-before")
    ] * 2
    detail = json.loads(audited[0].text)["body"]["detail"]
    assert (detail["epsilon"], detail["epsilon_before"], detail["round"]) == ("0.5", "2.0", 2)


def test_statements_at_another_delta_are_compared_the_way_that_epsilon_grows(state: State) -> None:
    begin(state)
    # At a smaller delta epsilon is larger: less of it is impossible.
    tell(state, a_budget("north", 1, epsilon_spent=2.0, delta=1e-5))
    tell(state, a_budget("north", 2, epsilon_spent=1.0, delta=1e-6))
    assert [(b.epsilon_spent, b.delta) for b in state.budgets()] == [(2.0, 1e-5)]
    assert len(state.audit()) == 1
    tell(state, a_budget("north", 3, epsilon_spent=2.6, delta=1e-6))
    # At a larger one it is smaller, which proves nothing; but not smaller than it was there.
    tell(state, a_budget("north", 4, epsilon_spent=2.1, delta=1e-5))
    assert [(b.epsilon_spent, b.delta) for b in state.budgets()] == [(2.1, 1e-5)]
    assert len(state.audit()) == 1


def test_no_statement_is_ever_changed(state: State, execute: Execute) -> None:
    begin(state)
    tell(state, a_budget())
    for statement in (
        "UPDATE server_budgets SET epsilon_spent = 0",
        "DELETE FROM server_budgets WHERE epsilon_spent > 0",
    ):
        with pytest.raises(Exception, match="append-only"):
            execute(statement)
    assert state.budgets() == [a_budget()]


@pytest.mark.parametrize(
    "odd",
    [
        {"epsilon_spent": float("nan")},
        {"epsilon_spent": -0.1},
        {"epsilon_budget": float("nan")},
        {"delta": float("nan")},
        {"delta": 0.0},
        {"delta": 1.0},
    ],
)
def test_numbers_that_are_no_budget(odd: dict[str, Any]) -> None:
    with pytest.raises(PrivacyError, match=next(iter(odd))):
        a_budget(**odd)
