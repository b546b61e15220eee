"""What was spent, what an event would cost, and whether every budget it counts in allows it."""

import math

from fedpeft.dp.events import PrivacyEvent
from fedpeft.errors import BudgetError
from fedpeft.ledger.records import Balance
from fedpeft.ledger.state import Budget, DataSet, State

_MOST_EVENTS = 1_000_000


def price(state: State, fingerprint: str, event: PrivacyEvent) -> dict[str, float]:
    """Returns the epsilon that each budget of an affected data set would stand at.

    An event on one data set also counts for every other that shares a row with it, so that all
    their budgets must allow it: else a row's budget could be had again by adding another row.

    Raises:
        BudgetError: If the data set has no budget, or one of the budgets does not allow the event.
    """
    require_budget(state, fingerprint)
    after = {}
    for dataset, budget in state.budgeted(fingerprint):
        total = state.spent(dataset.fingerprint, budget.delta, event)
        if total > budget.epsilon:
            raise BudgetError(_refusal(state, fingerprint, event, dataset, budget, total))
        after[dataset.fingerprint] = total
    return after


def remaining(state: State, fingerprint: str, event: PrivacyEvent, most: int = _MOST_EVENTS) -> int:
    """Returns how many such events fit in every budget that they count in, `most` at most."""

    def fits(count: int) -> bool:
        events = event.repeated(count)
        return all(
            state.spent(dataset.fingerprint, budget.delta, events) <= budget.epsilon
            for dataset, budget in state.budgeted(fingerprint)
        )

    low, high = 0, 1
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def require_budget(state: State, fingerprint: str) -> Budget:
    """Returns the data set's budget.

    Raises:
        BudgetError: If there is none.
    """
    budget = state.datasets[fingerprint].budget
    if budget is None:
        raise BudgetError(
            f"no budget, no training: nobody has set one for data set {fingerprint[:12]}; its "
            "owner does with `fedpeft budget set`"
        )
    return budget


def balance(state: State, fingerprint: str) -> Balance:
    """Returns where a data set stands."""
    dataset = state.datasets[fingerprint]
    reservations = state.reservations(fingerprint)
    budget, spent, exhausted = dataset.budget, None, False
    if budget is not None:
        spent = state.spent(fingerprint, budget.delta)
        exhausted = spent > budget.epsilon or (
            bool(reservations)
            and remaining(state, fingerprint, reservations[-1].event, most=1) == 0
        )
    return Balance(
        fingerprint=fingerprint,
        owner=dataset.owner,
        num_rows=dataset.num_rows,
        overlaps=dict(dataset.overlaps),
        epsilon=budget.epsilon if budget else None,
        delta=budget.delta if budget else None,
        spent=spent,
        num_events=len(reservations),
        num_open=sum(state.releases[r.id] is None for r in reservations),
        exhausted=exhausted,
    )


def rounded_up(epsilon: float) -> str:
    """Returns epsilon for a message: never lower than it is."""
    return f"{math.ceil(epsilon * 1e4) / 1e4:.4f}" if math.isfinite(epsilon) else str(epsilon)


def _refusal(
    state: State,
    fingerprint: str,
    event: PrivacyEvent,
    dataset: DataSet,
    budget: Budget,
    total: float,
) -> str:
    spent = state.spent(dataset.fingerprint, budget.delta)
    whose = f"data set {dataset.fingerprint[:12]}"
    if dataset.fingerprint != fingerprint:
        shared = dataset.overlaps[fingerprint]
        rows = "row" if shared == 1 else "rows"
        whose += f", which shares {shared} {rows} with {fingerprint[:12]},"
    num_releases = remaining(state, fingerprint, event.single(), most=event.num_releases)
    return (
        f"the budget of {whose} is epsilon {budget.epsilon:g} at delta {budget.delta:g}: "
        f"{rounded_up(spent)} is spent and this event of {event.num_releases} releases would "
        f"cost {rounded_up(total - spent)} more; 0 such events still fit, of its releases "
        f"{num_releases}; plan fewer of them or more noise, or its owner raises the budget"
    )
