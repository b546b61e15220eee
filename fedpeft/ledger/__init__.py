"""The budget ledger: what was spent on which data, durably, and nothing beyond the budget."""

from fedpeft.ledger.chain import Entry, Head
from fedpeft.ledger.ledger import Ledger
from fedpeft.ledger.records import Balance, Reservation

__all__ = ["Balance", "Entry", "Head", "Ledger", "Reservation"]
