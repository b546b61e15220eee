"""What one kind of database is: its schema, its lock, and how its errors are told."""

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import MetaData

from fedpeft.errors import FedpeftError


@dataclass(frozen=True, kw_only=True)
class DatabaseKind:
    """One kind of database.

    Attributes:
        noun: What messages call it, without an article.
        metadata: Tables as the newest schema has them.
        migrations: Folder of the modules that make them, one a schema.
        revisions: Every schema there has been, oldest first.
        version_table: Says which one is there.
        guards: Triggers that keep what was written from being changed.
        lock_key: In PostgreSQL a transaction with this key is the one writer; another kind's key
            differs.
        num_connections: That are kept open.
        refused: Raised where the location, the file or a value cannot be used.
        unavailable: Raised where the database cannot do it now.
        backup: Which backup will do if the database is damaged.
        power_cut: What a power cut does to one that does not sync.
    """

    noun: str
    metadata: MetaData
    migrations: Path
    revisions: tuple[str, ...]
    version_table: str
    guards: frozenset[str]
    lock_key: int
    num_connections: int
    refused: type[FedpeftError]
    unavailable: type[FedpeftError]
    backup: str
    power_cut: str
