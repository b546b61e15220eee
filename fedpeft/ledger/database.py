"""The database under a ledger; see `fedpeft.database`."""

from pathlib import Path

from fedpeft import database
from fedpeft.errors import LedgerError
from fedpeft.ledger.tables import GUARDS, METADATA, REVISIONS, VERSION_TABLE

_POSTGRES_LOCK = 0x666564706566744C

LEDGER = database.DatabaseKind(
    noun="ledger",
    metadata=METADATA,
    migrations=Path(__file__).parent / "migrations" / "versions",
    revisions=REVISIONS,
    version_table=VERSION_TABLE,
    guards=GUARDS,
    lock_key=_POSTGRES_LOCK,
    num_connections=1,
    refused=LedgerError,
    unavailable=LedgerError,
    backup="a backup that is not older than the last release, or the budget spent since is lost",
    power_cut="refund spent budget",
)


class Database(database.Database):
    """One connection to a ledger's database, opened when it is first needed."""

    def __init__(self, location: str | Path, *, read_only: bool, busy_timeout_s: float) -> None:
        """Reads the location; nothing is opened yet.

        Raises:
            LedgerError: If it names neither a path nor a database that a ledger can use.
        """
        super().__init__(LEDGER, location, read_only=read_only, busy_timeout_s=busy_timeout_s)
