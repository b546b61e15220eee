"""Triggers: audit log and budgets are only added to, the log only at the end of its chain."""

from fedpeft.database import guards

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Makes the triggers."""
    guards.append_only("server", ("server_audit", "server_budgets"))
    guards.in_order("server", "server_audit")
