"""Who may do what: PostgreSQL's privileges, and threads of one process."""

import threading
from contextlib import closing

import pytest

from fedpeft.errors import BudgetError, LedgerError
from fedpeft.ledger import Ledger
from tests.ledger.samples import DELTA, DIGEST, EVENT, rows
from tests.postgres import Server


@pytest.fixture
def owned(postgres_server: Server) -> str:
    location = postgres_server.new_schema()
    with Ledger.open(location) as ledger:
        data = ledger.register(rows(0, 5))
        ledger.set_budget(data, epsilon=1.0, delta=DELTA)
    return location


def role(location: str, name: str, *grants: str) -> str:
    """Makes a user with these rights, and returns the URL with which it connects."""
    import psycopg

    schema = location.rsplit("%3D", 1)[1]
    with closing(psycopg.connect(location, autocommit=True)) as connection:
        connection.execute(f"CREATE ROLE {name} LOGIN")
        connection.execute(f"GRANT USAGE ON SCHEMA {schema} TO {name}")
        for grant in grants:
            connection.execute(f"GRANT {grant} TO {name}")
    return location.replace("//owner@", f"//{name}@")


def test_a_user_needs_no_more_than_insert_and_select(owned: str) -> None:
    import psycopg

    tables = "ledger_entries, ledger_datasets, ledger_secret"
    clerk = role(
        *(owned, "clerk", f"SELECT, INSERT ON {tables}", "SELECT ON ledger_version"),
    )
    with Ledger.open(clerk) as ledger:
        data = ledger.register(rows(0, 6))
        ledger.set_budget(data, epsilon=0.5, delta=DELTA)
        ledger.commit(ledger.reserve(data, EVENT), DIGEST)
        ledger.verify()
    for statement in ("UPDATE ledger_entries SET kind = ''", "DROP TABLE ledger_entries"):
        with (
            closing(psycopg.connect(clerk)) as connection,
            pytest.raises(psycopg.errors.InsufficientPrivilege),
        ):
            connection.execute(statement)


def test_an_auditor_exports_the_chain_without_seeing_hashes_or_salt(owned: str) -> None:
    auditor = role(owned, "auditor", "SELECT ON ledger_entries, ledger_version")
    with Ledger.open(auditor, read_only=True) as ledger:
        assert [entry.kind for entry in ledger.history()] == ["created", "registered", "budget"]
        assert ledger.balances()[0].epsilon == 1.0
        with pytest.raises(LedgerError, match=r"permission denied.*nothing was changed"):
            ledger.verify()
    with Ledger.open(auditor) as ledger:
        name = ledger.balances()[0].fingerprint
        with pytest.raises(LedgerError, match=r"permission denied.*nothing was changed"):
            ledger.reserve(name, EVENT)


def test_threads_never_take_more_than_there_is(location: str) -> None:
    with Ledger.open(location) as ledger:
        data = ledger.register(rows(0, 5))
        ledger.set_budget(data, epsilon=0.07, delta=DELTA)
        fits = ledger.remaining_events(data, EVENT)
        taken: list[str] = []

        def take() -> None:
            while True:
                try:
                    reservation = ledger.reserve(data, EVENT)
                except BudgetError:
                    return
                taken.append(reservation.id)
                ledger.commit(reservation, DIGEST)
                ledger.balance(data)

        threads = [threading.Thread(target=take) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(taken)) == len(taken) == fits
        assert ledger.balance(data).num_open == 0
        ledger.verify()
