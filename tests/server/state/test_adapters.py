"""Adapter versions: found by digest, with their lineage and their export."""

from dataclasses import replace

import pytest

from fedpeft.errors import PrivacyError
from fedpeft_server.records import AdapterRecord, ExportedFile
from fedpeft_server.state import NotFoundError, State, StateError, WrongStateError
from tests.server.state.samples import a_run, an_adapter, begin, digest, finish

FILES = {
    "adapter_model.safetensors": ExportedFile(sha256=digest("file"), size_bytes=3_000_000_000),
    "README.md": ExportedFile(sha256=digest("card"), size_bytes=0),
}


def plain(adapter: AdapterRecord, **other: object) -> AdapterRecord:
    """Without the NaN, which is not equal to itself."""
    return replace(adapter, metrics={}, **other)


def test_versions_come_oldest_first(state: State) -> None:
    begin(state)
    finish(state, 1)
    begin(state, "run-2")
    finish(state, 2)
    rounds = [(adapter.run_id, adapter.round) for adapter in state.adapters()]
    assert rounds == [("run-1", 0), ("run-1", 1), ("run-2", 0), ("run-1", 2)]
    assert [adapter.round for adapter in state.adapters("run-1")] == [0, 1, 2]
    assert state.adapters("run-9") == []
    assert state.newest_adapter("run-9") is None
    newest = state.newest_adapter("run-2")
    assert newest is not None
    assert plain(newest) == plain(an_adapter(0, "run-2"))


def test_a_run_starts_once(state: State) -> None:
    begin(state)
    state.start_adapter(an_adapter(0))
    with pytest.raises(WrongStateError, match="run run-1 started from adapter"):
        state.start_adapter(an_adapter(0, digest=digest("another")))
    with pytest.raises(NotFoundError, match="there is no run 'run-9'"):
        state.start_adapter(an_adapter(0, "run-9"))
    assert len(state.adapters()) == 1


def test_a_version_is_found_by_the_beginning_of_its_digest(state: State) -> None:
    begin(state)
    finish(state, 1)
    wanted = an_adapter(1)
    for prefix in (wanted.digest, wanted.digest[:8]):
        assert plain(state.adapter(prefix)) == plain(wanted)
    for odd in ("", wanted.digest[:7], "%" * 8, "_" * 8, wanted.digest + "0", "ABCDEF01"):
        with pytest.raises(NotFoundError, match="8 to 64 hex digits"):
            state.adapter(odd)
    with pytest.raises(NotFoundError, match="no adapters begin with '00000000'"):
        state.adapter("0" * 8)


def test_a_beginning_of_several_digests_names_none(state: State) -> None:
    begin(state)
    similar = "ab" * 31
    state.add_run(a_run("run-2"), "second", "operator")
    state.add_run(a_run("run-3"), "third", "operator")
    state.start_adapter(an_adapter(0, "run-2", digest=similar + "01"))
    state.start_adapter(an_adapter(0, "run-3", digest=similar + "02"))
    with pytest.raises(NotFoundError, match="2 adapters begin with"):
        state.adapter(similar)
    assert state.adapter(similar + "02").run_id == "run-3"


def test_of_two_runs_that_made_the_same_tensors_the_newer_is_found(state: State) -> None:
    begin(state)
    state.add_run(a_run("run-2"), "second", "operator")
    state.start_adapter(an_adapter(0, "run-2", digest=an_adapter(0).digest))
    assert state.adapter(an_adapter(0).digest).run_id == "run-2"
    # Its export is that run's alone.
    state.set_export(an_adapter(0).digest, FILES, run_id="run-1")
    assert [adapter.export for adapter in state.adapters()] == [FILES, None]


def test_a_run_that_starts_from_another_runs_version_has_its_participants(state: State) -> None:
    begin(state)
    finish(state, 1)
    parent = an_adapter(1)
    state.add_run(a_run("run-2"), "second", "operator")
    first = an_adapter(0, "run-2", parent=parent.digest)
    with pytest.raises(WrongStateError, match="leaves out north, whose updates are in the version"):
        state.start_adapter(first)
    with pytest.raises(NotFoundError, match="no adapters begin with"):
        state.start_adapter(replace(first, parent=digest("unknown")))
    state.start_adapter(replace(first, participants=parent.participants))
    assert state.adapter(first.digest).participants == parent.participants


def test_an_export_is_set_and_replaced(state: State) -> None:
    begin(state)
    finish(state, 1)
    state.set_export(an_adapter(1).digest, {"README.md": FILES["README.md"]}, run_id="run-1")
    state.set_export(an_adapter(1).digest, FILES, run_id="run-1")
    assert state.adapter(an_adapter(1).digest).export == FILES
    assert state.adapter(an_adapter(0).digest).export is None
    with pytest.raises(NotFoundError, match="run 'run-1' has no adapter"):
        state.set_export(digest("unknown"), FILES, run_id="run-1")
    begin(state, "run-2")
    with pytest.raises(NotFoundError, match="run 'run-2' has no adapter"):
        state.set_export(an_adapter(1).digest, FILES, run_id="run-2")


@pytest.mark.parametrize("name", ["../secret", "a/b", "a\\b", "", ".", "..", ".hidden", "a" * 129])
def test_a_name_that_could_leave_its_folder(state: State, name: str) -> None:
    begin(state)
    with pytest.raises(StateError, match="a plain name"):
        state.set_export(an_adapter(0).digest, {name: FILES["README.md"]}, run_id="run-1")
    with pytest.raises(StateError, match="at least one file"):
        state.set_export(an_adapter(0).digest, {}, run_id="run-1")
    assert state.adapter(an_adapter(0).digest).export is None


@pytest.mark.parametrize("value", [float("nan"), -0.1])
def test_an_epsilon_that_is_none(value: float) -> None:
    with pytest.raises(PrivacyError, match="epsilon of north"):
        an_adapter(1, epsilon={"north": value})


def test_an_epsilon_without_bound_is_told_as_it_is(state: State) -> None:
    begin(state)
    state.add_run(a_run("run-2"), "second", "operator")
    state.start_adapter(an_adapter(0, "run-2", epsilon={"north": float("inf")}))
    assert state.adapters("run-2")[0].epsilon == {"north": float("inf")}
