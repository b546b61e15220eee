"""What the audit log says of calls: every change, every refusal, and no flood."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedpeft.errors import RemoteError, UnavailableError
from fedpeft_server.access.limits import Rate
from fedpeft_server.access.trail import AuditTrail
from fedpeft_server.records import AuditRecord
from fedpeft_server.state import State
from tests.server.control_rig import Rig, listening
from tests.server.nodes import enrol, invite
from tests.server.raw_calls import WIRE, channel, send
from tests.server.runs import config


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with listening(tmp_path) as opened:
        yield opened


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    with State.open(tmp_path / "server.db") as opened:
        yield opened


def told(entries: list[AuditRecord]) -> list[tuple[str, str, str, str]]:
    return [
        (entry.actor, entry.action.removeprefix(WIRE), entry.subject, entry.outcome)
        for entry in entries
    ]


def test_every_change_as_it_begins_and_as_it_ends(rig: Rig) -> None:
    operator = rig.connect("operator")
    run_id = operator.submit_run(config()).run_id
    operator.stop_run(run_id)
    enrol(rig, "clinic")
    operator.revoke_client("clinic", "left")
    operator.list_runs()
    assert told(rig.state.audit()) == [
        (actor, method, subject, outcome)
        for actor, method, before, after in [
            ("operator", "Runs/SubmitRun", "", run_id),
            ("operator", "Runs/StopRun", run_id, run_id),
            ("operator", "Clients/InviteClient", "clinic", "clinic"),
            ("clinic", "Clients/EnrolClient", "", "clinic"),
            ("operator", "Clients/RevokeClient", "clinic", "clinic"),
        ]
        for subject, outcome in ((before, "begun"), (after, "ok"))
    ]
    rig.state.verify_audit()


def test_a_change_that_fails_says_how(rig: Rig) -> None:
    with pytest.raises(RemoteError):
        rig.connect("operator").stop_run("0" * 16)
    begun, ended = rig.state.audit()
    assert (begun.outcome, ended.outcome) == ("begun", "no-such-run")
    request = json.loads(begun.text)["body"]["detail"]["request"]
    assert json.loads(ended.text)["body"]["detail"]["request"] == request


def test_every_refusal(rig: Rig) -> None:
    with channel(rig, "reader") as opened:
        send(opened, f"{WIRE}Server/ListAudit", b"")
        send(opened, f"{WIRE}Runs/Nothing", b"")
    assert told(rig.state.audit()) == [
        ("reader", "Server/ListAudit", "", "not-allowed"),
        ("reader", "unknown", "", "unknown-method"),
    ]


def test_no_token_and_no_row_gets_in(rig: Rig) -> None:
    token = invite(rig, "clinic")
    with pytest.raises(RemoteError):
        rig.connect("clinic").enrol_client(b"no key", token=token, version="1")
    text = "".join(entry.text for entry in rig.state.audit())
    assert token not in text
    assert "no key" not in text


def test_a_change_that_cannot_be_written_down_is_not_made(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise UnavailableError("the disk is full")

    monkeypatch.setattr(rig.state, "append_audit", refuse)
    with pytest.raises(UnavailableError, match="cannot reach what it keeps its records in"):
        rig.connect("operator").submit_run(config())
    assert rig.state.runs() == []


def test_refusals_do_not_fill_the_disk(state: State) -> None:
    now = 0.0
    trail = AuditTrail(state, Rate(burst=3, per_minute=1, clock=lambda: now))
    for i in range(1000):
        trail.refused("mallory", "/x", "", "not-allowed", f"{i}")
    trail.refused("alice", "/x", "", "not-allowed", "a")
    assert [entry.actor for entry in state.audit()] == ["mallory"] * 3 + ["alice"]
    now = 60.0
    trail.refused("mallory", "/x", "", "not-allowed", "later")
    last = json.loads(state.audit()[-1].text)["body"]
    assert last["detail"] == {"request": "later", "left_out_before": 997}


def test_a_refusal_that_cannot_be_written_down_is_still_one(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise UnavailableError("down")

    monkeypatch.setattr(state, "append_audit", refuse)
    AuditTrail(state).refused("mallory", "/x", "", "not-allowed", "1")


def test_the_log_is_checked_by_whoever_reads_it(rig: Rig) -> None:
    from fedpeft.remote.audit_log import verify_audit_log

    for i in range(5):
        invite(rig, f"client {i}")
    entries = list(rig.connect("auditor").audit())
    head = verify_audit_log(entries)
    assert head == rig.state.audit_head()
    assert list(rig.connect("auditor").audit(after=3)) == entries[3:]
