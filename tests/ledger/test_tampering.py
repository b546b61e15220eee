"""Whatever is done to the tables behind the ledger's back shows, in both databases."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from fedpeft.errors import LedgerError, VerificationError
from fedpeft.ledger import Entry, Head, Ledger, chain
from fedpeft.ledger.fingerprint import fingerprint_of
from fedpeft.ledger.tables import GUARDS
from tests.ledger.samples import DELTA, DIGEST, EVENT, rows

Execute = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture
def data(location: str) -> str:
    """A ledger of 8 entries: created, registered, budget, 2 × (reserved, committed), reserved."""
    with Ledger.open(location) as ledger:
        fingerprint = ledger.register(rows(0, 5))
        ledger.set_budget(fingerprint, epsilon=0.1, delta=DELTA)
        for _ in range(2):
            ledger.commit(ledger.reserve(fingerprint, EVENT), DIGEST)
        ledger.reserve(fingerprint, EVENT)
        assert ledger.verify().count == 8
    return fingerprint


@pytest.fixture
def force(location: str, execute: Execute) -> Execute:
    """Runs SQL with the guards off; they are back afterwards."""

    def call(*statements: str) -> list[tuple[Any, ...]]:
        tables = ("ledger_entries", "ledger_datasets", "ledger_secret")
        if "://" in location:
            off = [f"ALTER TABLE {table} DISABLE TRIGGER USER" for table in tables]
            on = [f"ALTER TABLE {table} ENABLE TRIGGER USER" for table in tables]
        else:
            guards = execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
            off = [f"DROP TRIGGER {name}" for name, _ in guards]
            on = [str(sql) for _, sql in guards]
        return execute(*off, *statements, *on)

    return call


def refused(location: str, match: str) -> None:
    """The audit fails, and so does everything else that would rely on the ledger."""
    with pytest.raises(VerificationError, match=match), Ledger.open(location) as ledger:
        ledger.verify()


def add(execute: Execute, kind: str, body: dict[str, Any]) -> int:
    """Adds an entry whose hashes are right; its content is what the test says."""
    position, time, digest = execute(
        "SELECT position, recorded_at, hash FROM ledger_entries ORDER BY position DESC LIMIT 1"
    )[0]
    entry = Entry.following(Head(position, digest), time, kind, body, chain.utc_now())
    values = (entry.kind, entry.recorded_at, entry.body_text, entry.previous, entry.hash)
    texts = ", ".join("'" + value.replace("'", "''") + "'" for value in values)
    execute(
        "INSERT INTO ledger_entries (position, kind, recorded_at, body, previous, hash) "
        f"VALUES ({entry.position}, {texts})"
    )
    return entry.position


def test_the_database_itself_only_lets_entries_be_added(
    location: str, data: str, execute: Execute
) -> None:
    statements = [
        "UPDATE ledger_entries SET body = '{}' WHERE position = 4",
        "DELETE FROM ledger_entries WHERE position = 8",
        "DELETE FROM ledger_datasets",
        "UPDATE ledger_secret SET salt = ''",
        "INSERT INTO ledger_entries SELECT 10, kind, recorded_at, clock, body, hash, 'x' "
        "FROM ledger_entries WHERE position = 8",
        "INSERT INTO ledger_entries SELECT 9, kind, recorded_at, clock, body, 'x', 'y' "
        "FROM ledger_entries WHERE position = 8",
        "TRUNCATE ledger_entries"
        if "://" in location
        else "INSERT OR REPLACE INTO ledger_entries SELECT position, kind, recorded_at, clock, "
        "'{}', previous, 'x' FROM ledger_entries WHERE position = 8",
    ]
    for statement in statements:
        with pytest.raises(Exception, match=r"append-only|only follow the last one"):
            execute(statement)
    with Ledger.open(location) as ledger:
        assert ledger.verify().count == 8


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        (
            "UPDATE ledger_entries SET body = replace(body, '0.1', '9.9') WHERE position = 3",
            "entry 3 of the ledger: its content does not give its hash",
        ),
        (
            "UPDATE ledger_entries SET recorded_at = '2020' WHERE position = 2",
            "entry 2 of the ledger: its content does not give its hash",
        ),
        (
            "UPDATE ledger_entries SET body = body || ' ' WHERE position = 5",
            "entry 5 of the ledger: its content does not give its hash",
        ),
        (
            "UPDATE ledger_entries SET body = 'nonsense' WHERE position = 6",
            "entry 6 of the ledger: its content cannot be read",
        ),
        ("DELETE FROM ledger_entries WHERE position = 4", "entry 5 .*entry 4 was expected here"),
        ("DELETE FROM ledger_entries WHERE position = 1", "entry 2 .*entry 1 was expected here"),
        ("DELETE FROM ledger_entries", "lost all its entries"),
        ("DELETE FROM ledger_datasets", "the row hashes of data set .* are gone"),
        ("DELETE FROM ledger_secret", "secret salt is not the one"),
    ],
)
def test_a_changed_table_is_found(
    location: str, data: str, force: Execute, statement: str, message: str
) -> None:
    force(statement)
    refused(location, message)


def test_an_entry_with_new_hash_does_not_fit_the_next_one(
    location: str, data: str, execute: Execute, force: Execute
) -> None:
    row = execute("SELECT * FROM ledger_entries WHERE position = 4")[0]
    fields = json.loads(Entry.stored(row).to_json())
    body = fields["body"] | {"purpose": "something else"}
    time, head = fields["recorded_at"], Head(3, fields["previous"])
    forged = Entry.following(head, time, "reserved", body, chain.utc_now())
    force(
        f"UPDATE ledger_entries SET body = '{forged.body_text}', hash = '{forged.hash}', "
        f"recorded_at = '{forged.recorded_at}' WHERE position = 4"
    )
    refused(location, "entry 5 of the ledger: (it does not follow|its time is earlier)")


def test_the_end_cut_off_shows_only_against_a_head_kept_elsewhere(
    location: str, data: str, force: Execute
) -> None:
    with Ledger.open(location) as ledger:
        kept = ledger.head()
        force("DELETE FROM ledger_entries WHERE position = 8")
        # The process that saw the entry knows,
        with pytest.raises(VerificationError, match="no longer the one that was read before"):
            ledger.reserve(data, EVENT)
    with Ledger.open(location) as ledger:
        # a new one cannot,
        assert ledger.verify().count == 7
        # but for the head.
        with pytest.raises(VerificationError, match=r"ends before it.*cut off"):
            ledger.verify(kept)
        ledger.reserve(data, EVENT)
        with pytest.raises(VerificationError, match="has another hash there"):
            ledger.verify(kept)


def test_a_head_of_the_past_is_still_good(location: str, data: str) -> None:
    with Ledger.open(location) as ledger:
        heads = [entry.head for entry in ledger.history()]
        for head in heads:
            assert ledger.verify(Head.parse(str(head))) == heads[-1]


@pytest.mark.parametrize("text", ["", "3", "x:" + "0" * 64, "3:" + "0" * 63, "3:" + "G" * 64])
def test_a_head_that_is_none(text: str) -> None:
    with pytest.raises(LedgerError, match="expected a head such as"):
        Head.parse(text)


def test_entries_that_break_a_rule_are_found_though_their_hashes_are_right(
    location: str, data: str, execute: Execute, force: Execute
) -> None:
    with Ledger.open(location) as ledger:
        *_, last = ledger.history()
    body: dict[str, Any] = dict(last.body)
    event: dict[str, Any] = body["event"]
    unknown = "7" * 64
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("refunded", {"reservation": body["reservation"]}, "its kind 'refunded' is unknown"),
        ("created", {"ledger": "x", "salt_digest": "x", "version": 1}, "and no other"),
        ("reserved", body, "was made before"),
        ("reserved", body | {"reservation": "1", "note": "x"}, "unknown fields.*note"),
        ("reserved", body | {"reservation": "1", "dataset": unknown}, "never registered"),
        ("reserved", body | {"reservation": "1", "spent": {}}, "does not state what was spent"),
        ("reserved", body | {"reservation": "1", "spent": {data: "0.2"}}, "beyond its budget 0.1"),
        ("reserved", body | {"reservation": "1", "spent": {data: "nan"}}, "beyond its budget 0.1"),
        (
            "reserved",
            body | {"reservation": "1", "event": event | {"version": 2}},
            "does not know privacy events of kind 'dp-sgd', version 2",
        ),
        (
            "reserved",
            body | {"reservation": "1", "event": event | {"kind": "dp-ftrl"}},
            "does not know privacy events of kind 'dp-ftrl'",
        ),
        (
            "reserved",
            body | {"reservation": "1", "event": event | {"noise_multiplier": "0.0"}},
            "noise_multiplier must be positive",
        ),
        ("committed", {"reservation": "9", "release": DIGEST}, "was never made"),
        ("committed", {"reservation": body["reservation"], "release": "x"}, "no sha256"),
        ("budget", {"dataset": data, "epsilon": "nan", "delta": "1e-05"}, "finite number"),
        ("budget", {"dataset": data, "epsilon": "1.00", "delta": "1e-05"}, "no float as it is wri"),
        ("budget", {"dataset": data, "epsilon": "1.0", "delta": "1.0"}, r"lie in \(0, 1\)"),
        (
            "registered",
            {"dataset": data, "owner": "", "num_rows": 5, "overlaps": {}},
            "was registered before",
        ),
        (
            "registered",
            {"dataset": unknown, "owner": "", "num_rows": 3, "overlaps": {data: 4}},
            "cannot share 4 rows",
        ),
        (
            "registered",
            {"dataset": unknown, "owner": "", "num_rows": True, "overlaps": {}},
            "num_rows should be int",
        ),
    ]
    for kind, content, message in cases:
        position = add(execute, kind, content)
        refused(location, f"entry {position} of the ledger: .*{message}")
        force(f"DELETE FROM ledger_entries WHERE position = {position}")
    with Ledger.open(location) as ledger:
        assert ledger.verify() == last.head
    # And a second release under one reservation.
    done = {"reservation": body["reservation"], "release": DIGEST}
    add(execute, "committed", done)
    position = add(execute, "committed", done)
    refused(location, f"entry {position} of the ledger: .*was committed before")


def test_a_budget_below_what_was_spent_is_found_with_the_accountant(
    location: str, data: str, execute: Execute
) -> None:
    position = add(execute, "budget", {"dataset": data, "epsilon": "0.001", "delta": "1e-05"})
    refused(location, f"after entry {position}: its events cost epsilon")


def test_a_cost_that_was_stated_too_low_is_found_with_the_accountant(
    location: str, data: str, execute: Execute
) -> None:
    with Ledger.open(location) as ledger:
        *_, last = ledger.history()
    for number in range(100):
        event = dict(last.body["event"]) | {"num_steps": 1000}
        body = {**last.body, "reservation": str(number), "event": event, "spent": {data: "0.01"}}
        position = add(execute, "reserved", body)
    refused(location, "now: its events cost epsilon")
    raised = {"dataset": data, "epsilon": "50.0", "delta": "1e-05"}
    assert add(execute, "budget", raised) == position + 1
    refused(location, f"before entry {position + 1}: its events cost epsilon")


def test_a_data_set_that_hides_whom_it_shares_rows_with_is_found(
    location: str, data: str, execute: Execute
) -> None:
    packed = bytes(execute("SELECT digests FROM ledger_datasets")[0][0])[8:]
    name = fingerprint_of(packed)
    literal = f"'\\x{packed.hex()}'" if "://" in location else f"x'{packed.hex()}'"
    execute(f"INSERT INTO ledger_datasets VALUES ('{name}', {literal})")
    refused(location, "has row hashes but was not registered")
    add(execute, "registered", {"dataset": name, "owner": "", "num_rows": 4, "overlaps": {}})
    refused(location, "does not share the rows with others that its entry says")


def test_row_hashes_that_were_changed_are_found(location: str, data: str, force: Execute) -> None:
    empty = "'\\x'" if "://" in location else "x''"
    force(f"UPDATE ledger_datasets SET digests = {empty}")
    refused(location, "the row hashes of data set .* were changed")
    with Ledger.open(location) as ledger, pytest.raises(VerificationError, match="were changed"):
        ledger.register(rows(0, 6))


def test_another_salt_is_found_before_a_row_is_hashed_with_it(
    location: str, data: str, force: Execute
) -> None:
    literal = f"'\\x{'00' * 32}'" if "://" in location else f"x'{'00' * 32}'"
    force(f"UPDATE ledger_secret SET salt = {literal}")
    with Ledger.open(location) as ledger, pytest.raises(VerificationError, match="secret salt"):
        ledger.register(rows(0, 5))
    refused(location, "secret salt")


@pytest.mark.parametrize("guard", sorted(GUARDS))
def test_a_guard_that_was_removed_is_found(
    location: str, data: str, execute: Execute, guard: str
) -> None:
    table = guard.removesuffix("_in_order").removesuffix("_no_update").removesuffix("_no_delete")
    execute(f"DROP TRIGGER {guard}" + (f" ON {table}" if "://" in location else ""))
    refused(location, f"the trigger {guard} is gone")
