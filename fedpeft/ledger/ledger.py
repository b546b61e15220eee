"""The budget ledger: reserve before the first gradient, commit after the release.

The guarantee: when `reserve` returns, the event is on disk, and it counts for ever in the budget of
every data set that shares a row with the one it is for, whatever happens next. No sequence of
calls, crashes, restarts or concurrent processes brings what is reserved on a data set beyond its
budget. Entries are chained by hash; `verify` finds a changed one. See docs/ledger.md.
"""

import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from sqlalchemy import Connection, insert, select

from fedpeft.canonical import write_float
from fedpeft.dp.events import PrivacyEvent
from fedpeft.errors import BudgetError, LedgerError, PrivacyError
from fedpeft.ledger import audit, events, pricing, schema
from fedpeft.ledger.chain import Entry, Head
from fedpeft.ledger.database import Database
from fedpeft.ledger.fingerprint import fingerprint_of, num_rows, num_shared, pack_rows, unpack
from fedpeft.ledger.records import Balance, Reservation
from fedpeft.ledger.state import Budget, DataSet, State, check_budget
from fedpeft.ledger.store import Store
from fedpeft.ledger.tables import DATASETS, ENTRIES

_LONGEST_TEXT = 200


class Ledger:
    """An open ledger; use it in a `with` block.

    Threads may share one. A process forked from one that is not inside a call may go on with it.
    """

    def __init__(self, store: Store) -> None:
        """Use `Ledger.open`."""
        self._store = store

    @classmethod
    def open(
        cls, location: str | Path, *, read_only: bool = False, busy_timeout_s: float = 10.0
    ) -> Self:
        """Opens a ledger, makes it where there is none, migrates it where it is older.

        Args:
            location: A file's path, `sqlite:///path` or `postgresql://user@host/database`.
            read_only: Make and change nothing; also for a copy on a read-only disk.
            busy_timeout_s: How long to wait for another process's write.

        Raises:
            LedgerError: If it cannot be opened, or a newer fedpeft wrote it.
            VerificationError: If an entry is not what was once written.
        """
        database = Database(location, read_only=read_only, busy_timeout_s=busy_timeout_s)
        return cls(Store(database))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the database."""
        self._store.close()

    # --- writing

    def register(self, rows: Iterable[Mapping[str, object]], *, owner: str = "") -> str:
        """Makes a data set known and returns its fingerprint; the same rows are the same data set.

        Args:
            rows: The values of each row by column. Only what identifies a row: a column that
                changes from export to export would make every row a new one.
            owner: Keeps the equal rows of two people apart where one ledger serves many of them, as
                in a simulation. On the owner's own machine leave it empty: to change it is to
                forget what was spent.

        Raises:
            DataError: If there is no row, or one without values.
        """
        _check_text("owner", owner)
        with self._store.reading() as state, self._store.snapshot() as connection:
            salt = audit.check_salt(connection, state)
        packed = pack_rows(rows, owner=owner, salt=salt)
        name = fingerprint_of(packed)
        with self._store.reading() as state:
            if name in state.datasets:
                return name
        with self._store.writing() as (connection, state):
            if name not in state.datasets:
                body = {
                    "dataset": name,
                    "owner": owner,
                    "num_rows": num_rows(packed),
                    "overlaps": _overlaps(state, connection, packed, owner),
                }
                connection.execute(insert(DATASETS).values(fingerprint=name, digests=packed))
                self._store.append(connection, "registered", body)
        return name

    def set_budget(self, fingerprint: str, *, epsilon: float, delta: float) -> None:
        """Sets what may be spent on the rows of a data set, in all runs together.

        The budget that stands already makes no entry.

        Raises:
            PrivacyError: If epsilon is negative or not finite, or delta does not lie in (0, 1).
            BudgetError: If more than that is spent already.
            LedgerError: If the data set is unknown.
        """
        budget = Budget(float(epsilon), float(delta))
        check_budget(budget)
        with self._store.writing() as (connection, state):
            if _known(state, fingerprint).budget == budget:
                return
            spent = state.spent(fingerprint, budget.delta)
            if spent > budget.epsilon:
                least = pricing.rounded_up(spent)
                raise BudgetError(
                    f"epsilon {least} at delta {budget.delta:g} is spent already on data set "
                    f"{fingerprint[:12]}, and what is released cannot be taken back: its budget "
                    f"cannot be {budget.epsilon:g}; give at least {least}"
                )
            body = {
                "dataset": fingerprint,
                "epsilon": write_float(budget.epsilon),
                "delta": write_float(budget.delta),
            }
            self._store.append(connection, "budget", body)

    def reserve(self, fingerprint: str, event: PrivacyEvent, *, purpose: str = "") -> Reservation:
        """Pays for an event, durably; call it before the first gradient.

        Args:
            fingerprint: The data set.
            event: What will be released.
            purpose: For the reader of the history: run, round, client.

        Raises:
            BudgetError: If there is no budget, or the event would exceed one that it counts in:
                that of the data set, or of one that shares rows with it.
            PrivacyError: If the event is of a kind that the ledger does not know.
            LedgerError: If the data set is unknown, or the ledger cannot be written.
        """
        encoded = events.encode(event)
        _check_text("purpose", purpose)
        # Once without the write lock, so that others do not wait for the accountant, which
        # remembers; and again under it, where the answer counts.
        with self._store.reading() as state:
            _known(state, fingerprint)
            pricing.price(state, fingerprint, event)
        with self._store.writing() as (connection, state):
            spent = pricing.price(state, fingerprint, event)
            id_ = secrets.token_hex(16)
            body = {
                "reservation": id_,
                "dataset": fingerprint,
                "event": encoded,
                "purpose": purpose,
                "spent": {name: write_float(value) for name, value in spent.items()},
            }
            entry = self._store.append(connection, "reserved", body)
        return Reservation(
            id=id_,
            fingerprint=fingerprint,
            event=event,
            purpose=purpose,
            position=entry.position,
        )

    def commit(self, reservation: Reservation | str, release_digest: str) -> None:
        """Records what was released under a reservation; again with the same digest is no error.

        Args:
            reservation: What `reserve` returned, or its id.
            release_digest: sha256 of the release, 64 hex digits.

        Raises:
            LedgerError: If the reservation is unknown.
            PrivacyError: If it paid for another release already: reserve again for a second one.
        """
        id_ = reservation if isinstance(reservation, str) else reservation.id
        if re.fullmatch(r"[0-9a-f]{64}", release_digest) is None:
            raise LedgerError(
                f"expected the sha256 of the release, 64 hex digits, got {release_digest!r}"
            )
        with self._store.writing() as (connection, state):
            if id_ not in state.releases:
                raise LedgerError(f"the ledger knows no reservation {id_!r}")
            before = state.releases[id_]
            if before == release_digest:
                return
            if before is not None:
                raise PrivacyError(
                    f"reservation {id_} paid for the release {before[:12]}…; the release "
                    f"{release_digest[:12]}… needs a reservation of its own"
                )
            body = {"reservation": id_, "release": release_digest}
            self._store.append(connection, "committed", body)

    # --- reading

    def balance(self, fingerprint: str) -> Balance:
        """Returns where the data set stands.

        Raises:
            LedgerError: If the data set is unknown.
        """
        with self._store.reading() as state:
            _known(state, fingerprint)
            return pricing.balance(state, fingerprint)

    def balances(self) -> list[Balance]:
        """Returns where every data set stands, in order of registration."""
        with self._store.reading() as state:
            return [pricing.balance(state, fingerprint) for fingerprint in state.datasets]

    def find(self, prefix: str) -> str:
        """Returns the one data set whose fingerprint begins so.

        Raises:
            LedgerError: If none does, or several do.
        """
        with self._store.reading() as state:
            found = [name for name in state.datasets if name.startswith(prefix)]
        if len(found) != 1 or not prefix:
            raise LedgerError(
                f"{len(found) or 'no'} data sets in this ledger begin with {prefix!r}; "
                "`fedpeft budget show` lists them"
            )
        return found[0]

    def reservations(self, fingerprint: str) -> list[Reservation]:
        """Returns all reservations on rows of the data set, oldest first.

        Raises:
            LedgerError: If the data set is unknown.
        """
        with self._store.reading() as state:
            _known(state, fingerprint)
            return state.reservations(fingerprint)

    def release_of(self, reservation: Reservation | str) -> str | None:
        """Returns the digest of what was released under a reservation; None: nothing yet.

        Raises:
            LedgerError: If the reservation is unknown.
        """
        id_ = reservation if isinstance(reservation, str) else reservation.id
        with self._store.reading() as state:
            if id_ not in state.releases:
                raise LedgerError(f"the ledger knows no reservation {id_!r}")
            return state.releases[id_]

    def open_reservation(
        self, fingerprint: str, event: PrivacyEvent, *, purpose: str
    ) -> Reservation | None:
        """Returns the latest reservation of this very data set, event and purpose without release.

        Who knows that nothing left the machine under it, because it commits before it sends, may
        go on with it after a crash. The ledger cannot know that; see `federated.client_round`.

        Raises:
            LedgerError: If the data set is unknown.
        """
        with self._store.reading() as state:
            for found in reversed(_known(state, fingerprint).reservations):
                if (found.event, found.purpose) == (event, purpose):
                    return found if state.releases[found.id] is None else None
        return None

    def spent_epsilon(self, fingerprint: str, delta: float) -> float:
        """Returns epsilon at `delta` of all events that can have touched one of the rows.

        Raises:
            PrivacyError: If delta does not lie in (0, 1).
            LedgerError: If the data set is unknown.
        """
        with self._store.reading() as state:
            _known(state, fingerprint)
            return state.spent(fingerprint, delta)

    def remaining_events(self, fingerprint: str, event: PrivacyEvent) -> int:
        """Returns how many such events would still be admitted, one after the other.

        Found by bisection with the accountant itself. A million stands for that or more.

        Raises:
            BudgetError: If there is no budget.
            LedgerError: If the data set is unknown.
        """
        events.encode(event)
        with self._store.reading() as state:
            _known(state, fingerprint)
            pricing.require_budget(state, fingerprint)
            return pricing.remaining(state, fingerprint, event)

    def history(self) -> Iterator[Entry]:
        """Yields every entry, oldest first, each one checked against its hash."""
        after = 0
        while True:
            with self._store.snapshot() as connection:
                rows = connection.execute(
                    select(ENTRIES)
                    .where(ENTRIES.c.position > after)
                    .order_by(ENTRIES.c.position)
                    .limit(1000)
                ).all()
            if not rows:
                return
            yield from audit.read_entries(rows)
            after = rows[-1].position

    def head(self) -> Head:
        """Returns the number of entries and the last one's hash.

        Keep it where nobody who can write the ledger can change it: only against it can `verify`
        see that entries were cut off at the end.
        """
        with self._store.reading() as state:
            return state.head

    def verify(self, expected_head: Head | None = None) -> Head:
        """Checks the whole ledger, from its first entry on, and returns its head.

        Args:
            expected_head: A head that was kept elsewhere; the ledger may have grown since.

        Raises:
            VerificationError: If anything is wrong; it names the first entry that is.
        """
        with self._store.snapshot() as connection:
            return audit.audit(connection, expected_head).head

    def copy_to(self, location: str | Path) -> Head:
        """Copies the whole ledger to a place where there is none; from SQLite to PostgreSQL too.

        Two ledgers that are both used spend twice: go on with one of them.

        Raises:
            LedgerError: If there is a ledger already, or it cannot be made.
            VerificationError: If this ledger, or the copy, is not sound.
        """
        with self._store.snapshot() as connection:
            head = audit.audit(connection, None).head
            schema.copy(connection, Database(location, read_only=False, busy_timeout_s=10.0))
        with type(self).open(location) as copy:
            return copy.verify(head)


def _known(state: State, fingerprint: str) -> DataSet:
    dataset = state.datasets.get(fingerprint)
    if dataset is None:
        raise LedgerError(
            f"this ledger knows no data set {fingerprint!r}; register its rows first, for "
            "example with `fedpeft budget set --data FILE`"
        )
    return dataset


def _overlaps(state: State, connection: Connection, packed: bytes, owner: str) -> dict[str, int]:
    mine, found = unpack(packed), {}
    for name, dataset in state.datasets.items():
        if dataset.owner != owner:
            continue
        query = select(DATASETS.c.digests).where(DATASETS.c.fingerprint == name)
        stored = connection.execute(query).scalar_one_or_none()
        other = unpack(audit.checked_digests(state, name, stored))
        shared = num_shared(mine, other)
        if shared:
            found[name] = shared
    return found


def _check_text(name: str, value: str) -> None:
    if not isinstance(value, str) or len(value) > _LONGEST_TEXT or not value.isprintable():
        raise LedgerError(
            f"{name} must be printable text of at most {_LONGEST_TEXT} characters, got {value!r}"
        )
