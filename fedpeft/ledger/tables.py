"""The tables as the newest schema has them; `migrations` makes them."""

from sqlalchemy import BigInteger, Column, Integer, LargeBinary, MetaData, Table, Text

METADATA = MetaData()

ENTRIES = Table(
    "ledger_entries",
    METADATA,
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("kind", Text, nullable=False),
    Column("recorded_at", Text, nullable=False),
    Column("clock", Text),
    Column("body", Text, nullable=False),
    # Unique: of two entries that were decided on the same state, the database takes one.
    Column("previous", Text, nullable=False, unique=True),
    Column("hash", Text, nullable=False, unique=True),
)

DATASETS = Table(
    "ledger_datasets",
    METADATA,
    Column("fingerprint", Text, primary_key=True),
    Column("digests", LargeBinary, nullable=False),
)

SECRET = Table(
    "ledger_secret",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("salt", LargeBinary, nullable=False),
)

VERSION_TABLE = "ledger_version"

REVISIONS = ("0001", "0002")
"""Every schema there has been, oldest first; a test holds it to what `migrations` has."""

GUARDS = frozenset(
    f"{table}_{guard}"
    for table, guards in {
        "ledger_entries": ("no_update", "no_delete", "in_order"),
        "ledger_datasets": ("no_update", "no_delete"),
        "ledger_secret": ("no_update", "no_delete"),
    }.items()
    for guard in guards
)
"""Triggers that keep a client of the database from changing what was written."""
