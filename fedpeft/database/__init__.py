"""SQL databases as fedpeft uses them: SQLite or PostgreSQL, durable at every commit."""

from fedpeft.database.database import Database
from fedpeft.database.kind import DatabaseKind

__all__ = ["Database", "DatabaseKind"]
