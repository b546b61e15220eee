"""What cannot work is refused with a reason, and nothing is changed."""

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from fedpeft.errors import FedpeftError, LedgerError, VerificationError
from fedpeft.ledger import Ledger
from fedpeft.ledger.database import Database
from fedpeft.ledger.store import Store
from fedpeft.ledger.tables import REVISIONS
from tests.ledger.samples import DELTA, EVENT, rows
from tests.sandbox import in_sandbox, on_small_disk


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger with something in it."""
    found = tmp_path / "ledger.db"
    with Ledger.open(found) as ledger:
        data = ledger.register(rows(0, 200))
        ledger.set_budget(data, epsilon=5.0, delta=DELTA)
        for _ in range(20):
            ledger.reserve(data, EVENT)
    return found


def refused(location: str | Path, match: str, **options: bool) -> str:
    with pytest.raises(FedpeftError, match=match) as refusal:
        Ledger.open(location, **options)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_only_the_owner_can_read_a_ledger(path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_place_where_no_ledger_can_be(tmp_path: Path) -> None:
    refused(tmp_path / "missing" / "ledger.db", r"there is no folder .*missing.* create it first")
    refused(tmp_path, "is a folder, but a ledger is a file")
    (tmp_path / "file").touch()
    refused(tmp_path / "file" / "ledger.db", "there is no folder")
    refused(tmp_path / "ledger.db", "there is no ledger at", read_only=True)
    refused("sqlite://", "a ledger needs a file")
    refused("sqlite:///x.db?mode=memory", "a ledger needs a file")
    refused("mysql://user@host/db", "SQLite or PostgreSQL, not in 'mysql'")
    refused("::://", "no database URL|not in")
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


def test_a_server_that_does_not_answer(tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    message = refused(f"postgresql://owner:secret@/postgres?host={tmp_path}", "cannot be reached")
    assert "secret" not in message


def test_a_sqlite_url_is_a_path(path: Path) -> None:
    with Ledger.open(f"sqlite:///{path}") as ledger:
        assert ledger.head().count == 23


@pytest.mark.parametrize("content", [b"", b"this is no database\n" * 500, bytes(8192)])
def test_a_file_that_is_no_ledger(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "ledger.db"
    file.write_bytes(content)
    refused(file, "is empty, which a ledger never is|no ledger at all|of something else")
    refused(file, "is empty|no ledger at all|of something else", read_only=True)
    assert file.read_bytes() == content


def test_a_database_of_something_else(tmp_path: Path) -> None:
    file = tmp_path / "other.db"
    with closing(sqlite3.connect(file)) as other:
        other.execute("CREATE TABLE bookmarks (url TEXT)")
    before = file.read_bytes()
    refused(file, r"is an SQLite database of something else \(tables: bookmarks\)")
    assert file.read_bytes()[100:] == before[100:]


def test_bytes_overwritten_anywhere_never_go_unnoticed(path: Path) -> None:
    good = path.read_bytes()
    with Ledger.open(path) as ledger:
        head = ledger.head()
    messages = []
    for start in range(0, len(good), len(good) // 40):
        path.write_bytes(good[:start] + b"\xa5" * 64 + good[start + 64 :])
        try:
            with Ledger.open(path) as ledger:
                # Space that no row uses can hold anything.
                assert ledger.verify() == head
        except (LedgerError, VerificationError) as error:
            messages.append(str(error))
        for left in ("-wal", "-shm"):
            path.with_name(path.name + left).unlink(missing_ok=True)
    assert len(messages) > 15
    assert all("\n" not in message for message in messages)


def test_a_newer_schema(location: str) -> None:
    with Ledger.open(location):
        pass
    _set_version(location, "0099")
    refused(location, f"schema 0099, this fedpeft knows none after {REVISIONS[-1]}.*upgrade fedp")
    refused(location, "upgrade fedpeft", read_only=True)
    _set_version(location, REVISIONS[-1])
    with Ledger.open(location) as ledger:
        ledger.verify()


def _set_version(location: str, version: str) -> None:
    statement = f"UPDATE ledger_version SET version_num = '{version}'"
    if "://" in location:
        import psycopg

        with closing(psycopg.connect(location, autocommit=True)) as connection:
            connection.execute(statement)
    else:
        with closing(sqlite3.connect(location)) as file:
            file.execute(statement)
            file.commit()


_HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.readline()
connection.execute("ROLLBACK")
"""
_HOLD_POSTGRESQL = """
import psycopg, sys
from fedpeft.ledger.database import _POSTGRES_LOCK
with psycopg.connect(sys.argv[1]) as connection:
    connection.execute("SELECT pg_advisory_xact_lock(%s)", [_POSTGRES_LOCK])
    print("locked", flush=True)
    sys.stdin.readline()
"""


def test_locked_by_another_process(location: str) -> None:
    program = _HOLD_POSTGRESQL if "://" in location else _HOLD
    with Ledger.open(location, busy_timeout_s=0.05) as ledger:
        data = ledger.register(rows(0, 5))
        ledger.set_budget(data, epsilon=1.0, delta=DELTA)
        before = ledger.head()
        with subprocess.Popen(
            [sys.executable, "-c", program, location],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "locked\n"
            with pytest.raises(LedgerError, match=r"locked by another process .* than 0\.05 s"):
                ledger.reserve(data, EVENT)
            assert ledger.balance(data).num_events == 0  # reading goes on
            other.communicate("done\n")
        assert ledger.head() == before
        ledger.reserve(data, EVENT)
        assert ledger.verify().count == before.count + 1


_SANDBOXED = """
import json, os, sys
from pathlib import Path
from fedpeft.errors import FedpeftError
from fedpeft.ledger import Ledger
from tests.ledger.samples import DELTA, EVENT, rows

path = Path(sys.argv[1])
result = {}

def attempt(name, call):
    try:
        call()
    except FedpeftError as error:
        result[name] = str(error)
    else:
        result[name] = None

"""
_READ_ONLY = (
    _SANDBOXED
    + """
def read():
    with Ledger.open(path, read_only=True) as ledger:
        result["head"] = str(ledger.verify())
        result["events"] = ledger.balances()[0].num_events

def write():
    with Ledger.open(path) as ledger:
        data = ledger.register(rows(0, 200))
        ledger.reserve(data, EVENT)

attempt("write", write)
attempt("create", lambda: Ledger.open(path.with_name("new.db")))
attempt("read", read)
print(json.dumps(result))
"""
)
_FULL = (
    _SANDBOXED
    + """
with Ledger.open(path) as ledger:
    data = ledger.register(rows(0, 10))
    ledger.set_budget(data, epsilon=5.0, delta=DELTA)
    filler = path.with_name("filler")
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError as error:
            result["filled"] = error.strerror
    attempt("register", lambda: ledger.register(rows(0, 50000)))
    attempt("create", lambda: Ledger.open(path.with_name("new.db")))
    done = 0
    def reserve():
        global done
        while True:
            ledger.reserve(data, EVENT)
            done += 1
    attempt("reserve", reserve)
    result["events"] = [ledger.balance(data).num_events, done]
    ledger.verify()
    filler.unlink()
    ledger.reserve(data, EVENT)
    assert ledger.balance(data).num_events == done + 1
with Ledger.open(path) as ledger:
    ledger.verify()
    result["after"] = ledger.balance(data).num_events
result["files"] = sorted(os.listdir(path.parent))
print(json.dumps(result))
"""
)


def test_a_read_only_disk(path: Path) -> None:
    with Ledger.open(path) as ledger:
        head = ledger.head()
    before = path.read_bytes()
    mount = 'mount --bind "$FOLDER" "$FOLDER"; mount -o remount,ro,bind "$FOLDER"'
    found = in_sandbox(mount, _READ_ONLY, path)
    assert "cannot be written to" in str(found["write"])
    assert "cannot be created" in str(found["create"])
    # An auditor can read it all the same.
    assert (found["read"], found["head"], found["events"]) == (None, str(head), 20)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_log_that_a_read_only_disk_keeps_from_being_read_is_not_ignored(path: Path) -> None:
    with Ledger.open(path) as ledger:
        data = ledger.register(rows(0, 200))
        ledger.reserve(data, EVENT)
        copy = path.with_name("copy")
        copy.mkdir()
        for suffix in ("", "-wal"):  # as a careless backup does
            shutil.copy(f"{path}{suffix}", copy / f"ledger.db{suffix}")
    mount = 'mount --bind "$FOLDER" "$FOLDER"; mount -o remount,ro,bind "$FOLDER"'
    found = in_sandbox(mount, _READ_ONLY, copy / "ledger.db")
    assert found["read"] is not None or found["events"] == 21


def test_a_full_disk(path: Path) -> None:
    found = on_small_disk(_FULL, path.parent)
    assert found["filled"] == "No space left on device"
    for attempt in ("register", "create", "reserve"):
        assert "has no room on its disk" in str(found[attempt]), (attempt, found[attempt])
    assert "nothing was changed" in str(found["reserve"])
    recorded, returned = found["events"]
    assert recorded == returned  # what was refused does not count
    assert found["after"] == returned + 1
    assert found["files"] == ["file.db"]


def test_a_file_that_lost_its_write_permission(path: Path) -> None:
    chattr = shutil.which("chattr")
    if os.geteuid() != 0:
        path.chmod(0o400)
    elif chattr is None or subprocess.run([chattr, "+i", path]).returncode != 0:
        pytest.skip("root cannot be kept from writing here: no chattr")
    try:
        refused(path, "cannot be written to: .*nothing was changed")
        with Ledger.open(path, read_only=True) as ledger:
            assert ledger.verify().count == 23
    finally:
        if os.geteuid() == 0:
            subprocess.run([str(chattr), "-i", path], check=True)
    with Ledger.open(path) as ledger:
        assert ledger.verify().count == 23


def test_a_database_that_turns_out_to_be_read_only(location: str) -> None:
    with Ledger.open(location) as ledger:
        data = ledger.register(rows(0, 5))
        ledger.set_budget(data, epsilon=1.0, delta=DELTA)
        before = ledger.head()
    if "://" in location:
        location += "%20-cdefault_transaction_read_only%3Don"  # as on a standby
    database = Database(location, read_only=False, busy_timeout_s=1.0)
    if database.path is not None:
        database.read_only = True
        with database.reading():  # opens the file for reading only
            database.read_only = False
    with Ledger(Store(database)) as ledger:
        with pytest.raises(LedgerError, match=r"cannot be written to \(.*nothing was changed"):
            ledger.reserve(data, EVENT)
        assert ledger.verify() == before
