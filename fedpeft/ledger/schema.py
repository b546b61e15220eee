"""Making a ledger, and bringing an older one up to date, each in one transaction or not at all."""

import uuid

from sqlalchemy import Connection, insert, select

from fedpeft.database import schema
from fedpeft.errors import LedgerError
from fedpeft.ledger import chain, fingerprint
from fedpeft.ledger.chain import NO_ENTRY, Entry, Head
from fedpeft.ledger.database import Database
from fedpeft.ledger.tables import ENTRIES, METADATA, SECRET


def prepare(database: Database) -> None:
    """Makes the ledger if there is none, and migrates it if it is older.

    Raises:
        LedgerError: If it can be neither, or is newer than this program.
    """
    schema.prepare(database, _begin)


def copy(source: Connection, database: Database) -> None:
    """Makes a ledger with the same entries where there is none.

    Raises:
        LedgerError: If there is one, or it cannot be made.
    """

    def fill(target: Connection) -> None:
        for table in METADATA.sorted_tables:
            query = select(table).order_by(next(iter(table.primary_key)))
            with source.execute(query, execution_options={"yield_per": 1000}) as rows:
                for part in rows.mappings().partitions():
                    target.execute(insert(table), [dict(row) for row in part])

    if database.path is not None:
        with schema.file_errors_explained(database):
            if database.path.exists() or not schema.create_file(database, database.path, fill):
                raise LedgerError(f"{database.path} exists already; name another place")
        return
    try:
        with database.writing() as connection:
            if schema.version(connection, database) is not None:
                raise LedgerError(f"{database.name} holds a ledger already; name another place")
            schema.upgrade(connection, database.kind)
            fill(connection)
    finally:
        database.close()


def _begin(connection: Connection) -> None:
    """Writes the secret and the first entry, which binds the chain to it."""
    salt = fingerprint.new_salt()
    connection.execute(insert(SECRET).values(id=1, salt=salt))
    body = {"ledger": uuid.uuid4().hex, "salt_digest": fingerprint.salt_digest(salt), "version": 1}
    first = Entry.following(Head(0, NO_ENTRY), "", "created", body, chain.utc_now())
    append(connection, first)


def append(connection: Connection, entry: Entry) -> None:
    """Writes the entry at the end of the chain."""
    connection.execute(
        insert(ENTRIES).values(
            position=entry.position,
            kind=entry.kind,
            recorded_at=entry.recorded_at,
            clock=entry.clock,
            body=entry.body_text,
            previous=entry.previous,
            hash=entry.hash,
        )
    )
