"""The whole ledger checked from its first entry on, trusting nothing that was checked before."""

from collections.abc import Iterable

from sqlalchemy import Connection, select, text

from fedpeft.database.schema import missing_guards
from fedpeft.errors import VerificationError
from fedpeft.ledger import fingerprint
from fedpeft.ledger.chain import Entry, Head, check_kept
from fedpeft.ledger.database import LEDGER
from fedpeft.ledger.state import State
from fedpeft.ledger.tables import DATASETS, ENTRIES, SECRET

# Epsilon of an old entry is computed again with today's accountant. A finer or coarser one moves it
# by up to a percent; a ledger that was within its budgets then must not fail for that.
_ACCOUNTANT_DRIFT = 0.02


def audit(connection: Connection, expected_head: Head | None) -> State:
    """Checks the ledger and returns what it adds up to.

    In this order: the database's own structure, every entry's hash and rule, every budget against
    the accountant, the row hashes of the data sets, the guards, the head that was kept elsewhere.

    Raises:
        VerificationError: At the first thing that is wrong.
    """
    _check_structure(connection)
    state, expected_seen = State(), None
    query = select(ENTRIES).order_by(ENTRIES.c.position)
    with connection.execute(query, execution_options={"yield_per": 1000}) as rows:
        for entry in read_entries(rows):
            _follow(state, entry)
            if expected_head is not None and entry.position == expected_head.count:
                expected_seen = entry.hash
    for name in state.datasets:
        _check_budget(state, name, "now")
    _check_rows(connection, state)
    _check_guards(connection)
    if state.head.count == 0:
        raise VerificationError("the ledger has no entry, not even its first")
    check_kept(expected_head, expected_seen, state.head, "ledger")
    return state


def read_entries(rows: Iterable[Iterable[object]]) -> Iterable[Entry]:
    """Yields the entries in a table's rows.

    Raises:
        VerificationError: At the first row that is not what was once written.
    """
    for row in rows:
        values = tuple(row)
        try:
            yield Entry.stored(values)
        except ValueError as error:
            raise VerificationError(f"entry {values[0]} of the ledger: {error}") from error


def check_salt(connection: Connection, state: State) -> bytes:
    """Returns the ledger's secret.

    Raises:
        VerificationError: If it is gone or another: rows would not be known again.
    """
    salts = connection.execute(select(SECRET.c.salt)).scalars().all()
    if len(salts) != 1 or fingerprint.salt_digest(bytes(salts[0])) != state.salt_digest:
        raise VerificationError(
            "the ledger's secret salt is not the one of its first entry, so that no row would be "
            "known again; restore the whole ledger from a backup"
        )
    return bytes(salts[0])


def checked_digests(state: State, name: str, packed: bytes | None) -> bytes:
    """Returns the row hashes of a data set, checked against the chain.

    Raises:
        VerificationError: If they are gone or others.
    """
    if packed is None:
        raise VerificationError(f"the row hashes of data set {name} are gone")
    packed = bytes(packed)
    intact = fingerprint.fingerprint_of(packed) == name
    if not intact or fingerprint.num_rows(packed) != state.datasets[name].num_rows:
        raise VerificationError(f"the row hashes of data set {name} were changed")
    return packed


def _follow(state: State, entry: Entry) -> None:
    # Epsilon only grows while a budget stands: it is enough to look where one is replaced.
    if entry.kind == "budget":
        state.check(entry)
        _check_budget(state, entry.body["dataset"], f"before entry {entry.position}")
    state.follow(entry)
    if entry.kind == "budget":
        _check_budget(state, entry.body["dataset"], f"after entry {entry.position}")


def _check_structure(connection: Connection) -> None:
    if connection.dialect.name == "sqlite":
        result = connection.execute(text("PRAGMA integrity_check(1)")).scalar_one()
        if result != "ok":
            reason = " ".join(str(result).split())
            raise VerificationError(f"SQLite finds the ledger's file damaged: {reason}")


def _check_budget(state: State, name: str, when: str) -> None:
    dataset = state.datasets[name]
    if dataset.budget is None:
        return
    spent, budget = state.spent(name, dataset.budget.delta), dataset.budget.epsilon
    if spent > budget * (1 + _ACCOUNTANT_DRIFT):
        raise VerificationError(
            f"data set {name}, {when}: its events cost epsilon {spent:.4f}, beyond its budget "
            f"{budget:g}"
        )


def _check_rows(connection: Connection, state: State) -> None:
    check_salt(connection, state)
    rows = connection.execute(select(DATASETS))
    stored: dict[str, bytes] = {row.fingerprint: row.digests for row in rows}
    unknown = set(stored) - set(state.datasets)
    if unknown:
        raise VerificationError(f"data set {min(unknown)} has row hashes but was not registered")
    packed = {n: checked_digests(state, n, stored.get(n)) for n in state.datasets}
    for owner in sorted({dataset.owner for dataset in state.datasets.values()}):
        mine = {n: packed[n] for n, dataset in state.datasets.items() if dataset.owner == owner}
        try:
            shared = fingerprint.shared_rows(mine)
        except ValueError as error:
            raise VerificationError(f"a data set of owner {owner!r}: {error}") from error
        for name in mine:
            found = {other: n for pair, n in shared.items() if name in pair for other in pair}
            found.pop(name, None)
            if found != state.datasets[name].overlaps:
                raise VerificationError(
                    f"data set {name} does not share the rows with others that its entry says"
                )


def _check_guards(connection: Connection) -> None:
    missing = missing_guards(connection, LEDGER)
    if missing:
        raise VerificationError(
            f"the trigger {missing[0]} is gone, which keeps entries from being changed: somebody "
            "removed it; the entries themselves follow each other"
        )
