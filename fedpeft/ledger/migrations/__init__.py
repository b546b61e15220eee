"""Alembic migrations of the ledger's tables; `fedpeft.ledger.schema` runs them."""
