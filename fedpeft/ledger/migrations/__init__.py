"""Alembic migrations of the ledger's tables; `fedpeft.database.schema` runs them."""
