"""A database that is down, full, or held by somebody else; the same `State` goes on afterwards."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fedpeft.errors import UnavailableError
from fedpeft_server.state import State
from tests import postgres
from tests.sandbox import on_small_disk
from tests.server.state.samples import NOW, SOON, begin, finish


@pytest.fixture
def own_server() -> Iterator[postgres.Server]:
    with postgres.server() as running:
        yield running


def test_the_same_state_goes_on_when_its_server_is_back(own_server: postgres.Server) -> None:
    with State.open(own_server.url) as state:
        begin(state)
        for number in (1, 2):
            use_several_connections(state)
            own_server.stop()
            for call in (
                state.runs,
                lambda number=number: finish(state, number),
                lambda: state.append_audit("operator", "stop", "run-1", "ok"),
                lambda: state.use_nonce("a1", b"nonce", SOON, NOW),
                lambda: state.wait_events("run-1", 0, 300.0),
            ):
                with pytest.raises(
                    UnavailableError, match=r"the server database postgresql\+psycopg://owner@"
                ):
                    call()
            own_server.start()
            finish(state, number)
            assert len(state.rounds("run-1")) == number
        assert state.use_nonce("a1", b"nonce", SOON, NOW)
        assert state.verify_audit().count == 0


def test_a_restart_that_nobody_noticed_costs_no_call(own_server: postgres.Server) -> None:
    with State.open(own_server.url) as state:
        begin(state)
        use_several_connections(state)
        own_server.stop()
        own_server.start()
        finish(state, 1)
        use_several_connections(state)
        assert len(state.rounds("run-1")) == 1


def use_several_connections(state: State) -> None:
    """So that there is more than one to lose."""
    together = threading.Barrier(4)

    def read() -> None:
        with state._database.reading():
            together.wait()

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_a_server_that_is_down_when_it_is_first_needed(own_server: postgres.Server) -> None:
    own_server.stop()
    with pytest.raises(UnavailableError, match="cannot be reached"):
        State.open(own_server.url)
    own_server.start()
    State.open(own_server.url).close()


def test_a_server_that_says_nothing_any_more_is_noticed(postgres_server: postgres.Server) -> None:
    with State.open(postgres_server.new_schema()) as state, state._database.reading() as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        settings = driver.info.get_parameters()
    patience_s = int(settings["keepalives_idle"])
    patience_s += int(settings["keepalives_interval"]) * int(settings["keepalives_count"])
    assert patience_s <= 30
    assert int(settings["tcp_user_timeout"]) <= 30_000


def test_a_file_that_another_process_holds(tmp_path: Path) -> None:
    path = tmp_path / "server.db"
    with State.open(path, busy_timeout_s=0.05) as state:
        begin(state)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(UnavailableError, match=r"by another process .* than 0\.05 s"):
                finish(state, 1)
            assert state.rounds("run-1") == []  # reading goes on
        finish(state, 1)


def test_a_thread_that_holds_the_write_lock_too_long(location: str) -> None:
    with State.open(location, busy_timeout_s=0.05) as state:
        begin(state)
        with state._database.writing():
            with pytest.raises(UnavailableError, match=r"by another thread .* than 0\.05 s"):
                finish(state, 1)
            assert state.rounds("run-1") == []
        finish(state, 1)


_FULL = """
import json, os
from pathlib import Path
from fedpeft.errors import UnavailableError
from fedpeft_server.state import State
from tests.server.state.samples import begin, finish

result = {}
path = Path(os.environ["FILE"])
with State.open(path) as state:
    begin(state)
    filler = path.with_name("filler")
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass
    done = 0
    try:
        while True:
            finish(state, done + 1)
            done += 1
    except UnavailableError as error:
        result["refused"] = str(error)
    result["rounds"] = [len(state.rounds("run-1")), len(state.adapters("run-1")) - 1, done]
    filler.unlink()
    finish(state, done + 1)
    assert len(state.rounds("run-1")) == done + 1
print(json.dumps(result))
"""


def test_a_full_disk(tmp_path: Path) -> None:
    found = on_small_disk(_FULL, tmp_path)
    assert "has no room on its disk" in found["refused"]
    assert "nothing was changed" in found["refused"]
    assert len(set(found["rounds"])) == 1
