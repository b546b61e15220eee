"""The audit log: what is done to it shows, and no secret gets into it."""

import hashlib
import json
import threading
from typing import Any

import pytest

from fedpeft.errors import VerificationError
from fedpeft.ledger.chain import Head
from fedpeft_server.state import State, tables
from tests.server.state.conftest import Execute
from tests.server.state.samples import (
    NOW,
    SOON,
    a_budget,
    a_client,
    an_update,
    begin,
    digest,
    finish,
)


@pytest.fixture
def log(state: State) -> State:
    """A log of five entries."""
    for number in range(1, 6):
        state.append_audit("operator", "revoke", f"client-{number}", "ok", {"number": number})
    assert state.verify_audit().count == 5
    return state


def test_an_entry_comes_back_as_it_was_written(state: State) -> None:
    detail = {"code": "bad-token", "seconds": 0.1, "clients": ["a", None, True], "größer": -1}
    first = state.append_audit("north", "enrol", "north", "refused", detail)
    second = state.append_audit("operator", "stop", "run-1", "ok")
    assert (first.position, first.actor, first.action) == (1, "north", "enrol")
    assert (first.subject, first.outcome, first.previous) == ("north", "refused", "0" * 64)
    assert json.loads(first.text)["body"]["detail"] == {**detail, "seconds": "0.1"}
    assert second.previous == first.hash
    assert state.audit() == [first, second]
    assert state.audit(after=1) == [second]
    assert state.audit(limit=1) == [first]
    assert state.audit_head() == state.verify_audit() == Head(2, second.hash)


def test_the_chain_can_be_checked_without_us(log: State) -> None:
    """As docs/ledger.md shows for an export of the ledger."""
    last = "0" * 64
    for record in log.audit():
        entry = json.loads(record.text)
        claimed = entry.pop("hash")
        text = json.dumps(entry, sort_keys=True, separators=(",", ":"))
        assert entry["previous"] == last
        assert hashlib.sha256(text.encode()).hexdigest() == claimed
        last = claimed


def test_an_empty_log_is_whole(state: State) -> None:
    assert state.audit() == []
    assert state.verify_audit() == state.audit_head() == Head(0, "0" * 64)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        (
            "UPDATE server_audit SET body = replace(body, 'client-3', 'client-9') "
            "WHERE position = 3",
            "entry 3 of the audit log: its content does not give its hash",
        ),
        (
            "UPDATE server_audit SET kind = 'enrol' WHERE position = 2",
            "entry 2 of the audit log: its content does not give its hash",
        ),
        (
            "UPDATE server_audit SET body = 'nonsense' WHERE position = 4",
            "entry 4 of the audit log: its content cannot be read",
        ),
        ("DELETE FROM server_audit WHERE position = 4", "entry 5 .*entry 4 was expected here"),
        ("DELETE FROM server_audit WHERE position = 1", "entry 2 .*entry 1 was expected here"),
    ],
)
def test_a_changed_log_is_found(log: State, force: Execute, statement: str, message: str) -> None:
    force(statement)
    with pytest.raises(VerificationError, match=message):
        log.verify_audit()


def test_an_entry_with_a_new_hash_does_not_fit_the_next_one(log: State, force: Execute) -> None:
    entry = json.loads(log.audit()[1].text)
    entry.pop("hash")
    entry["body"]["subject"] = "somebody else"
    text = json.dumps(entry, sort_keys=True, separators=(",", ":"))
    body = json.dumps(entry["body"], sort_keys=True, separators=(",", ":"))
    forged = hashlib.sha256(text.encode()).hexdigest()
    force(f"UPDATE server_audit SET body = '{body}', hash = '{forged}' WHERE position = 2")
    assert log.audit(limit=2)[1].subject == "somebody else"
    with pytest.raises(VerificationError, match="entry 3 of the audit log: it does not follow"):
        log.verify_audit()


def test_the_end_cut_off_shows_against_a_head_kept_elsewhere(log: State, force: Execute) -> None:
    early, kept = Head(2, log.audit()[1].hash), log.audit_head()
    force("DELETE FROM server_audit WHERE position = 5")
    assert log.verify_audit().count == 4
    assert log.verify_audit(early).count == 4
    with pytest.raises(VerificationError, match=r"the audit log, of 4 entries, ends before it"):
        log.verify_audit(kept)
    log.append_audit("operator", "revoke", "client-7", "ok")
    with pytest.raises(VerificationError, match="has another hash there"):
        log.verify_audit(kept)


def test_the_database_itself_only_lets_entries_be_added(
    log: State, location: str, execute: Execute
) -> None:
    copied = "INSERT INTO server_audit SELECT {}, kind, recorded_at, clock, body, {}, 'x' FROM "
    copied += "server_audit WHERE position = 5"
    statements = [
        "UPDATE server_audit SET body = '{}' WHERE position = 4",
        "DELETE FROM server_audit WHERE position = 5",
        copied.format(7, "hash"),
        copied.format(6, "'y'"),
        "TRUNCATE server_audit"
        if "://" in location
        else "INSERT OR REPLACE INTO server_audit SELECT position, kind, recorded_at, clock, "
        "'{}', previous, 'x' FROM server_audit WHERE position = 5",
    ]
    for statement in statements:
        with pytest.raises(Exception, match=r"append-only|only follow the last one"):
            execute(statement)
    assert log.verify_audit().count == 5


@pytest.mark.parametrize("guard", sorted(tables.GUARDS))
def test_a_guard_that_was_removed_is_found(
    log: State, location: str, execute: Execute, guard: str
) -> None:
    table = guard.removesuffix("_in_order").removesuffix("_no_update").removesuffix("_no_delete")
    execute(f"DROP TRIGGER {guard}" + (f" ON {table}" if "://" in location else ""))
    with pytest.raises(VerificationError, match=f"the trigger {guard} is gone"):
        log.verify_audit()


def test_entries_of_many_threads_make_one_chain(state: State) -> None:
    def write(actor: str) -> None:
        for number in range(10):
            state.append_audit(actor, "submit", f"run-{number}", "ok")

    threads = [threading.Thread(target=write, args=[f"operator-{n}"]) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert state.verify_audit().count == 40


SECRET = "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49"
ROW = "Mrs Smith, born 1950-01-01, has been coughing since Tuesday. " * 5


@pytest.mark.parametrize("odd", [SECRET, ROW, "two\nlines", "\x1b[31mred", "x" * 201])
def test_text_that_may_be_a_row_or_a_key_is_left_out(state: State, odd: str) -> None:
    detail: dict[str, Any] = {"message": odd, odd: 1, "list": [{"deep": odd}]}
    entry = state.append_audit(odd, odd, odd, odd, detail)
    left_out = f"(left out: {len(odd)} characters)"
    assert (entry.actor, entry.action, entry.subject, entry.outcome) == (left_out,) * 4
    body = json.loads(entry.text)["body"]["detail"]
    assert body == {"message": left_out, left_out: 1, "list": [{"deep": left_out}]}
    assert state.verify_audit().count == 1


def test_what_the_state_writes_into_the_log_itself_has_no_secret(state: State) -> None:
    token = digest("token")
    state.add_invitation("north", token, SOON, "operator")
    state.enrol("north", token, a_client("north"), NOW)
    begin(state)
    envelope = b"signed-by-north-with-a-token"
    state.add_update(an_update(envelope=envelope), a_budget(epsilon_spent=3.0))
    state.add_update(an_update(round_number=2, envelope=envelope), a_budget(epsilon_spent=1.0))
    finish(state, 1)
    state.revoke_client("north", ROW, NOW)
    (entry,) = state.audit()
    for secret in (envelope.decode(), token, ROW, "key of north"):
        assert secret not in entry.text
