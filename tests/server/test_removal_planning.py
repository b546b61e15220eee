"""What a removal would do, by the lineage alone: versions, aliases, guarantees, in plain words."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from fedpeft.errors import RemoteError
from fedpeft_server.records import (
    AdapterRecord,
    AliasRecord,
    RemovalState,
    RunRecord,
    RunStatus,
)
from fedpeft_server.removals.family import Family
from fedpeft_server.removals.planning import (
    Known,
    Wish,
    already_removed,
    needs_records,
    plan_removal,
    training_run,
)
from tests.server.state.samples import NOW, a_removal, a_run, an_adapter, digest

NORTH, SOUTH = ("north",), ("south",)
BOTH = ("north", "south")


def version(
    run_id: str, number: int, parent: AdapterRecord | None, clients: Sequence[str], **other: Any
) -> AdapterRecord:
    return an_adapter(
        number,
        run_id,
        **{
            "parent": parent.digest if parent else None,
            "participants": tuple(clients),
            "epsilon": {},
            **other,
        },
    )


def a_line(run_id: str, *cohorts: Sequence[str], start: AdapterRecord | None = None) -> list[Any]:
    """A run's versions: round 0, then one a cohort, each made from the one before."""
    clients: list[str] = list(start.participants) if start else []
    first = {} if start is None else {"digest": start.digest}
    found = [version(run_id, 0, start, clients, **first)]
    for number, cohort in enumerate(cohorts, start=1):
        clients += [client for client in cohort if client not in clients]
        found.append(version(run_id, number, found[-1], clients))
    return found


def finished(*run_ids: str, **other: Any) -> dict[str, RunRecord]:
    return {name: a_run(name, **{"status": RunStatus.FINISHED, **other}) for name in run_ids}


def known(versions: Sequence[AdapterRecord], **other: Any) -> Known:
    runs = finished(*{v.run_id for v in versions})
    return Known(**{"versions": versions, "aliases": [], "runs": runs, "num_examples": {}, **other})


def a_wish(**other: Any) -> Wish:
    return Wish(
        **{
            "client_id": "north",
            "asked_by": "north",
            "place": "server",
            "method": "loku",
            "num_records": 3,
            **other,
        }
    )


def an_alias(name: str, of: AdapterRecord) -> AliasRecord:
    return AliasRecord(
        name=name,
        digest=of.digest,
        run_id=of.run_id,
        round=of.round,
        generation=1,
        changed_at=NOW,
        changed_by="operator",
    )


def digests(versions: Sequence[AdapterRecord]) -> tuple[str, ...]:
    return tuple(version.digest for version in versions)


def affected(versions: Sequence[AdapterRecord], named: AdapterRecord, **other: Any) -> Any:
    return plan_removal(a_wish(**other), named, known(versions)).affected


# --- which versions


def test_all_versions_since_the_client_came_in() -> None:
    line = a_line("run-1", SOUTH, BOTH, SOUTH, NORTH)
    plan = plan_removal(a_wish(), line[4], known(line))
    assert plan.adapter == line[4].digest
    assert plan.affected == digests(line[2:])
    assert plan.clean_ancestor == line[1].digest
    assert affected(line, line[4], client_id="south") == digests(line[1:])


def test_a_client_that_was_there_from_the_first_round() -> None:
    line = a_line("run-1", BOTH, BOTH)
    plan = plan_removal(a_wish(), line[2], known(line))
    assert plan.affected == digests(line[1:])
    assert plan.clean_ancestor == line[0].digest, "what the run started from"


def test_what_was_made_from_an_affected_version_is_affected_too() -> None:
    """Also by another run, and also beside the named one."""
    line = a_line("run-1", SOUTH, NORTH, NORTH)
    fork = a_line("run-2", SOUTH, start=line[2])
    later = a_line("run-3", SOUTH, start=fork[1])
    clean = a_line("run-4", SOUTH, start=line[1])
    versions = [*line, *fork, *later, *clean]
    expected = dict.fromkeys(digests([line[2], line[3], *fork, *later]))
    assert affected(versions, line[3]) == tuple(expected)
    assert set(affected(versions, later[1])) == set(expected), "from wherever one looks"


def test_a_run_that_began_with_an_affected_version_has_its_tensors() -> None:
    """Its round 0 is that version, so its digest comes once."""
    line = a_line("run-1", NORTH)
    fork = a_line("run-2", SOUTH, start=line[1])
    assert fork[0].digest == line[1].digest == fork[0].parent
    assert affected([*line, *fork], fork[1]) == (line[1].digest, fork[1].digest)
    assert [v.run_id for v in Family([*line, *fork]).line(fork[1])] == [
        "run-2",
        "run-2",
        "run-1",
        "run-1",
    ]


def test_other_lines_stay_as_they_are_and_are_named() -> None:
    line, other = a_line("run-1", NORTH), a_line("run-2", NORTH)
    plan = plan_removal(a_wish(), line[1], known([*line, *other]))
    assert plan.affected == (line[1].digest,)
    assert any("other runs" in note and "run-2" in note for note in plan.notes)


def test_runs_that_start_from_the_same_tensors_are_no_family() -> None:
    """Equal settings give equal first versions; nothing of one run is in the other."""
    one = a_line("run-1", NORTH)
    two = a_line("run-2", NORTH)
    two[0] = replace(two[0], digest=one[0].digest)
    two[1] = replace(two[1], parent=one[0].digest)
    assert affected([*one, *two], two[1]) == (two[1].digest,)
    assert affected([*one, *two], one[1]) == (one[1].digest,)
    for line in (one, two):
        mixed = Family([one[0], two[0], one[1], two[1]])
        assert [v.run_id for v in mixed.line(line[1])] == [line[0].run_id] * 2


def test_what_was_withdrawn_before_is_not_withdrawn_again() -> None:
    line = [replace(v, status="withdrawn") for v in a_line("run-1", BOTH, BOTH)]
    line[0] = replace(line[0], status="published")
    successor = version("removal-1", 1, line[2], BOTH)
    plan = plan_removal(a_wish(client_id="south"), successor, known([*line, successor]))
    assert plan.affected == (successor.digest,)
    assert plan.clean_ancestor == line[0].digest


def test_a_clean_ancestor_is_one_that_may_be_used() -> None:
    """Where another's rows were removed from it, retraining begins before that."""
    line = a_line("run-1", SOUTH, NORTH)
    line[1] = replace(line[1], status="withdrawn")
    plan = plan_removal(a_wish(method="retrain"), line[2], known(line))
    assert plan.clean_ancestor == line[0].digest
    gone = [replace(v, status="withdrawn") for v in line[:2]]
    plan = plan_removal(a_wish(method="retrain"), line[2], known([*gone, line[2]]))
    assert plan.clean_ancestor is None
    assert any("from nothing" in note for note in plan.notes)


def test_a_round_that_changed_nothing_holds_nothing() -> None:
    """Otherwise what was there before the client came would be withdrawn with it."""
    line = a_line("run-1", SOUTH, NORTH, NORTH)
    line[2] = replace(line[2], digest=line[1].digest)
    line[3] = replace(line[3], parent=line[2].digest)
    assert affected(line, line[3]) == (line[3].digest,)
    with pytest.raises(RemoteError) as error:
        affected(line, line[2])
    assert error.value.code == "never-trained"


@pytest.mark.parametrize(("client_id", "place"), [("south", 1), ("nobody", 2)])
def test_a_client_that_was_never_in(client_id: str, place: int) -> None:
    line = a_line("run-1", NORTH, SOUTH)
    with pytest.raises(RemoteError, match=f"had an update of client {client_id}") as error:
        affected(line, line[place], client_id=client_id)
    assert error.value.code == "never-trained"


# --- aliases and what is told


def test_the_aliases_that_move() -> None:
    line, other = a_line("run-1", NORTH, NORTH), a_line("run-2", NORTH)
    aliases = [
        an_alias("staging", line[1]),
        an_alias("production", line[2]),
        an_alias("first", line[0]),
        an_alias("elsewhere", other[1]),
    ]
    plan = plan_removal(a_wish(), line[2], known([*line, *other], aliases=aliases))
    assert plan.aliases == ("production", "staging")
    assert not any("no alias" in note for note in plan.notes)
    bare = plan_removal(a_wish(), line[2], known(line, aliases=aliases[2:]))
    assert bare.aliases == ()
    assert any("no alias points" in note for note in bare.notes)


def test_naming_a_version_that_is_not_the_last() -> None:
    line = a_line("run-1", NORTH, NORTH, NORTH)
    plan = plan_removal(a_wish(), line[1], known(line))
    assert plan.affected == digests(line[1:])
    (note,) = [note for note in plan.notes if "later versions" in note]
    assert line[3].digest[:12] in note
    last = plan_removal(a_wish(), line[3], known(line))
    assert not any("later versions" in note for note in last.notes)


def test_a_run_under_way_is_told_of() -> None:
    line = a_line("run-1", NORTH)
    running = known(line, runs=finished("run-1", status=RunStatus.RUNNING))
    assert any("run-1 is under way" in n for n in plan_removal(a_wish(), line[1], running).notes)


def test_what_is_claimed_of_a_job_at_the_client() -> None:
    line = a_line("run-1", NORTH)
    here = plan_removal(a_wish(place="client"), line[1], known(line))
    there = plan_removal(a_wish(), line[1], known(line))
    assert any("the client measured" in note for note in here.notes)
    assert not any("the client measured" in note for note in there.notes)


def test_who_can_keep_the_records_out_of_later_rounds() -> None:
    """Nobody but the client marks its rows, so nobody else can have them left out exactly."""
    line = a_line("run-1", NORTH)
    for clients, asked_by, is_told in (
        ("remote", "north", False),
        ("remote", "operator", True),
        ("simulated", "operator", False),
    ):
        seen = known(line, runs=finished("run-1", clients=clients))
        plan = plan_removal(a_wish(asked_by=asked_by), line[1], seen)
        assert any("has not marked" in note for note in plan.notes) is is_told
        exact = partial(plan_removal, a_wish(asked_by=asked_by, method="retrain"), line[1], seen)
        if is_told:
            with pytest.raises(RemoteError, match="only north itself can mark"):
                exact()
        else:
            assert exact().claim == "exact"


# --- the guarantee


@pytest.mark.parametrize(
    ("wish", "guarantee"),
    [
        ({}, None),
        ({"method": "kl"}, None),
        ({"place": "client"}, None),
        ({"void_guarantee": True}, "void"),
        ({"method": "retrain"}, "charged"),
        ({"method": "retrain", "void_guarantee": True}, "charged"),
        ({"place": "client", "private_job": True}, "charged"),
    ],
)
def test_what_becomes_of_a_guarantee(wish: dict[str, Any], guarantee: str | None) -> None:
    line = a_line("run-1", BOTH)
    # That another client has one is enough: nobody checks whose rows the job sees.
    private = replace(line[1], epsilon={"south": 1.5})
    if guarantee is None:
        with pytest.raises(RemoteError) as error:
            plan_removal(a_wish(**wish), private, known([line[0], private]))
        assert error.value.code == "guarantee"
    else:
        plan = plan_removal(a_wish(**wish), private, known([line[0], private]))
        assert plan.guarantee == guarantee
    if not wish.get("private_job"):
        assert plan_removal(a_wish(**wish), line[1], known(line)).guarantee == "none"


# --- records and runs


@pytest.mark.parametrize(
    ("clients", "place", "method", "expected"),
    [
        ("remote", "server", "loku", True),
        ("remote", "client", "loku", False),
        ("remote", "server", "retrain", False),
        ("remote", "client", "retrain", False),
        ("simulated", "server", "loku", True),
        ("simulated", "server", "retrain", True),
    ],
)
def test_when_the_records_are_waited_for(
    clients: str, place: str, method: str, expected: bool
) -> None:
    line = a_line("run-1", NORTH)
    successor = version("removal-1", 1, line[1], NORTH)
    runs = finished("run-1", clients=clients) | finished("removal-1", clients="removal")
    for named in (line[1], successor):
        seen = known([*line, successor], runs=runs)
        assert needs_records(a_wish(place=place, method=method), named, seen) is expected
        assert training_run(named, seen) == runs["run-1"]


def test_what_was_imported_cannot_be_retrained() -> None:
    imported = version("import-1", 1, None, NORTH)
    seen = known([imported], runs=finished("import-1", clients="import"))
    assert training_run(imported, seen) is None
    plan_removal(a_wish(), imported, seen)
    with pytest.raises(RemoteError, match="made elsewhere"):
        plan_removal(a_wish(method="retrain"), imported, seen)


def test_no_more_rows_than_the_client_had() -> None:
    line = a_line("run-1", NORTH)
    seen = known(line, num_examples={"run-1": 20, "run-9": 500})
    plan_removal(a_wish(num_records=19), line[1], seen)
    for num_records, code in ((20, "invalid"), (21, "never-trained"), (0, "invalid")):
        with pytest.raises(RemoteError) as error:
            plan_removal(a_wish(num_records=num_records), line[1], seen)
        assert error.value.code == code


def test_records_that_are_out_already() -> None:
    line = a_line("run-1", NORTH, NORTH)
    successor = version("removal-1", 1, line[2], NORTH)
    done = a_removal(state=RemovalState.PUBLISHED, successor=successor.digest)
    seen = known([*line, successor], removals=[done])
    assert already_removed(done.records_digest, successor, seen) == done.request_id
    assert already_removed(digest("others"), successor, seen) is None
    assert already_removed(done.records_digest, line[2], seen) is None, "they are still in it"
    failed = replace(done, state=RemovalState.FAILED)
    assert already_removed(done.records_digest, successor, replace(seen, removals=[failed])) is None
