"""Alembic migrations of the state's tables; `fedpeft.database.schema` runs them."""
