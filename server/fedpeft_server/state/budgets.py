"""Budgets as clients stated them; their own ledgers are what counts."""

from fedpeft_server.records import BudgetRecord
from fedpeft_server.state.store import Store


class Budgets(Store):
    """The budgets' part of the state; they are written with the updates."""

    def budgets(self, client_id: str | None = None) -> list[BudgetRecord]:
        """Returns one statement per client and data set: the newest, or a higher one before it.

        A client whose statement is lower than an earlier one has lost its ledger, or is lying: the
        earlier one stays shown, and the audit log says so. Epsilon at a smaller delta is at least
        that at a larger one, so statements at another delta are compared that way round.
        """
        raise NotImplementedError
