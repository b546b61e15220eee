"""Budgets as clients stated them; their own ledgers are what counts."""

from sqlalchemy import Connection, func, insert, select

from fedpeft_server.records import BudgetRecord
from fedpeft_server.state import audit
from fedpeft_server.state.store import Store, columns, following, values
from fedpeft_server.state.tables import BUDGETS


class Budgets(Store):
    """The budgets' part of the state; they are written with the updates."""

    def budgets(self, client_id: str | None = None) -> list[BudgetRecord]:
        """Returns one statement per client and data set: the newest, or a higher one before it.

        A client whose statement is lower than an earlier one has lost its ledger, or is lying: the
        earlier one stays shown, and the audit log says so. Epsilon at a smaller delta is at least
        that at a larger one, so statements at another delta are compared that way round.
        """
        newest = select(func.max(BUDGETS.c.position)).group_by(
            BUDGETS.c.client_id, BUDGETS.c.dataset
        )
        standing = select(BUDGETS.c.standing).where(BUDGETS.c.position.in_(newest))
        query = (
            select(*columns(BUDGETS, BudgetRecord))
            .where(BUDGETS.c.position.in_(standing))
            .order_by(BUDGETS.c.client_id, BUDGETS.c.dataset)
        )
        if client_id is not None:
            query = query.where(BUDGETS.c.client_id == client_id)
        with self._database.reading() as connection:
            return [BudgetRecord(**row) for row in connection.execute(query).mappings()]


def record(connection: Connection, budget: BudgetRecord) -> None:
    """Writes a statement, and into the audit log if it is lower than one before."""
    position = following(connection, BUDGETS.c.position)
    query = (
        select(BUDGETS.c.position, BUDGETS.c.epsilon_spent, BUDGETS.c.delta)
        .where(
            BUDGETS.c.client_id == budget.client_id,
            BUDGETS.c.dataset == budget.dataset,
            BUDGETS.c.delta >= budget.delta,
            BUDGETS.c.epsilon_spent > budget.epsilon_spent,
        )
        .order_by(BUDGETS.c.epsilon_spent.desc(), BUDGETS.c.position.desc())
        .limit(1)
    )
    higher = connection.execute(query).one_or_none()
    connection.execute(
        insert(BUDGETS).values(
            **values(BUDGETS, budget),
            position=position,
            standing=position if higher is None else higher.position,
        )
    )
    if higher is not None:
        audit.append(
            connection,
            actor=budget.client_id,
            action="state-budget",
            subject=budget.dataset,
            outcome="lower-than-before",
            detail={
                "run": budget.run_id,
                "round": budget.round,
                "epsilon": budget.epsilon_spent,
                "delta": budget.delta,
                "epsilon_before": higher.epsilon_spent,
                "delta_before": higher.delta,
            },
        )
