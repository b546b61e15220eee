"""Triggers: rows are only added, and an entry only at the end of the chain."""

from fedpeft.database import guards

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Makes the triggers."""
    guards.append_only("ledger", ("ledger_entries", "ledger_datasets", "ledger_secret"))
    guards.in_order("ledger", "ledger_entries")
