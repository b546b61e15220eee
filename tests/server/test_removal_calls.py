"""Removal requests as data owners, operators and others make and see them through the SDK."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fedpeft.errors import InputError, RemoteError, UnavailableError
from fedpeft.identity.roles import Role
from fedpeft.remote.removal_records import RemovalEvent, RemovalOrder, RemovalState
from fedpeft.unlearning.order import JobOrder
from fedpeft.unlearning.records import JobRows
from fedpeft.unlearning.sealing import JobKey, open_sealed, seal
from fedpeft.wire.v1 import removals_pb2
from fedpeft_server import watching
from fedpeft_server.records import RemovalState as Kept
from fedpeft_server.records import RunStatus
from fedpeft_server.removals import events
from fedpeft_server.removals.secrets import destroy, sweep
from tests.server.control_rig import Rig, listening
from tests.server.removal_requests import CLIENTS, ROWS, SECRET, an_order, asked, exported, trained
from tests.server.runs import play_round, submitted

HERE = {"place": "client"}
DIGEST = "d" * 64


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with listening(tmp_path_factory.mktemp("federation"), max_open_removals=1000) as opened:
        yield opened


def refused(call: Callable[[], object], code: str) -> str:
    with pytest.raises(RemoteError) as error:
        call()
    assert error.value.code == code, str(error.value)
    return str(error.value)


# --- a request from its beginning to its end


def test_a_request_with_records_that_are_sent(rig: Rig) -> None:
    adapter = trained(rig)
    clinic = rig.connect("clinic")
    deadline = datetime.now(UTC).replace(microsecond=0) + timedelta(days=30)
    order = an_order(
        adapter[:12],
        settings={"unlearning": {"num_epochs": 3}, "precisions": ["fp32"]},
        deadline=deadline,
    )
    removal = clinic.request_removal(order, records_digest=DIGEST)
    assert removal.order == replace(order, adapter=adapter)
    assert (removal.state, removal.requested_by) == (RemovalState.RECEIVED, "clinic")
    assert removal.records_digest == DIGEST
    assert removal.request_id not in rig.removals.started, "it waits for the records"

    sent = clinic.upload_records(removal, ROWS)
    assert (sent.state, sent.job_public_key) == (RemovalState.PLANNED, b"")
    assert rig.removals.started[-1] == removal.request_id
    kept = rig.state.removal(removal.request_id)
    assert kept.sealed is not None
    assert kept.job_private_key is not None
    opened = open_sealed(kept.job_private_key, kept.request_id, rig.artifacts.get(kept.sealed))
    assert JobRows.from_bytes(opened) == JobRows.from_bytes(ROWS.to_bytes())

    rig.removals.publish(removal.request_id, successor="5" * 64, receipt_json='{"kind": "x"}')
    ended = clinic.get_removal(removal.request_id)
    assert (ended.state, ended.successor) == (RemovalState.PUBLISHED, "5" * 64)
    assert clinic.get_receipt(removal.request_id) == '{"kind": "x"}'
    destroy(rig.state, rig.artifacts, removal.request_id)
    assert not rig.artifacts.has(kept.sealed)


def test_a_request_whose_job_runs_at_the_client(rig: Rig) -> None:
    adapter = trained(rig)
    removal = asked(rig, adapter, **HERE, settings={"gate": {"max_rows": 8}})
    assert (removal.state, removal.job_public_key) == (RemovalState.PLANNED, b"")
    assert rig.removals.started[-1] == removal.request_id
    clinic = rig.connect("clinic")
    job = clinic.get_removal_job(removal.request_id)
    order = JobOrder.from_json(job.order_json)
    assert order.request_id == removal.request_id
    assert order.labels == ("x", "y")
    assert order.run_config["adapter"]["target_modules"] == ["query"]  # type: ignore[index,call-overload]
    assert (order.guarantee, order.method) == ("none", "loku")
    assert order.settings == {"gate": {"max_rows": 8}}
    assert clinic.get_removal_job(removal.request_id) == job, "begun again it is the same job"
    assert job.adapter == rig.artifacts.get(rig.state.adapter(adapter).artifact)

    with pytest.raises(RemoteError, match="expected the tensors of an adapter, got none"):
        clinic.submit_successor(removal.request_id, b"", {}, {})
    sent = clinic.submit_successor(removal.request_id, b"tensors", {"lost": 0.1}, {"a": b"1"})
    assert sent.state is RemovalState.VERIFYING
    assert rig.removals.submitted[-1] == (
        removal.request_id,
        b"tensors",
        {"lost": 0.1},
        {"a": b"1"},
    )
    refused(lambda: clinic.get_removal_job(removal.request_id), "wrong-state")


def test_a_plan_changes_nothing(rig: Rig) -> None:
    adapter = trained(rig)
    before = rig.state.removals()
    head = rig.state.audit_head()
    plan = rig.connect("clinic").plan_removal(an_order(adapter))
    assert plan.affected[-1] == plan.adapter == adapter
    assert len(plan.affected) == 2
    assert (plan.claim, plan.guarantee) == ("approximate", "none")
    assert plan.gate["max_remaining"] == 0.3
    assert rig.state.removals() == before
    assert rig.state.audit_head() == head
    assert asked(rig, adapter).plan == plan


def test_an_alias_is_followed(rig: Rig) -> None:
    adapter = trained(rig)
    rig.connect("operator").deploy_adapter(adapter, "production")
    removal = asked(rig, "production")
    assert removal.order.adapter == adapter
    assert removal.plan.aliases == ("production",)
    rig.connect("operator").deploy_adapter(
        trained(rig), "production"
    )  # and is not followed any more
    assert rig.connect("clinic").get_removal(removal.request_id).order.adapter == adapter


def test_the_same_key_is_the_same_request(rig: Rig) -> None:
    adapter = trained(rig)
    first = asked(rig, adapter, key="once", records_digest=DIGEST)
    assert asked(rig, adapter, key="once", records_digest=DIGEST) == first
    assert asked(rig, adapter, key="once", by="operator").request_id != first.request_id
    message = refused(
        lambda: asked(rig, adapter, key="once", records_digest="e" * 64), "already-exists"
    )
    assert message == "this key was used for another removal request"
    rig.connect("clinic").cancel_removal(first.request_id)
    ended = asked(rig, adapter, key="once", records_digest=DIGEST)
    assert (ended.request_id, ended.state) == (first.request_id, RemovalState.CANCELLED)


def test_a_call_that_got_no_further_is_made_up_for(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request is recorded, and the call fails before its job is begun."""
    adapter = trained(rig)

    def fail(*_: object) -> None:
        raise UnavailableError("the database is down")

    again = {"key": "cut", "records_digest": "a3" * 32, **HERE}
    with monkeypatch.context() as patched:
        patched.setattr(rig.state, "add_removal_event", fail)
        with pytest.raises(UnavailableError):
            asked(rig, adapter, **again)
    request_id = rig.state.removals()[-1].request_id
    assert request_id not in rig.removals.started
    assert asked(rig, adapter, **again).request_id == request_id
    assert request_id in rig.removals.started


def test_the_same_records_under_another_key(rig: Rig) -> None:
    adapter = trained(rig)
    first = asked(rig, adapter, records_digest="a1" * 32)
    message = refused(lambda: asked(rig, adapter, records_digest="a1" * 32), "already-exists")
    assert first.request_id in message
    rig.connect("clinic").cancel_removal(first.request_id, "wrong rows")
    assert asked(rig, adapter, records_digest="a1" * 32).state is RemovalState.RECEIVED


def test_records_that_were_removed_before(rig: Rig) -> None:
    adapter = trained(rig)
    removal = asked(rig, adapter, **HERE, records_digest="a2" * 32)
    rig.removals.publish(removal.request_id, successor=adapter)
    message = refused(lambda: asked(rig, adapter, records_digest="a2" * 32), "never-trained")
    assert (
        message == f"nothing to remove: removal {removal.request_id} has removed the same records"
    )


# --- who may


def test_a_data_owner_asks_for_its_own_data_alone(rig: Rig) -> None:
    adapter = trained(rig)
    clinic, operator = rig.connect("clinic"), rig.connect("operator")
    others = an_order(adapter, client_id="hospital")
    assert "hospital" in refused(lambda: clinic.plan_removal(others), "not-yours")
    refused(lambda: clinic.request_removal(others, records_digest="1" * 64), "not-yours")
    operator.plan_removal(others)
    by_operator = operator.request_removal(others, records_digest="1" * 64)
    assert (by_operator.requested_by, by_operator.order.client_id) == ("operator", "hospital")


def test_what_a_data_owner_does_with_requests_of_others(rig: Rig) -> None:
    """They are as if they were not there."""
    adapter = trained(rig)
    removal = asked(rig, adapter, by="hospital", client_id="hospital")
    clinic = rig.connect("clinic")
    sealed = replace(removal, job_public_key=JobKey.generate().public)
    known_only_to_others: list[Callable[[], object]] = [
        lambda: clinic.get_removal(removal.request_id),
        lambda: list(clinic.watch_removal(removal.request_id)),
        lambda: clinic.cancel_removal(removal.request_id),
        lambda: clinic.get_receipt(removal.request_id),
        lambda: clinic.get_removal_job(removal.request_id),
        lambda: clinic.upload_records(sealed, ROWS),
        lambda: clinic.submit_successor(removal.request_id, b"t", {}, {}),
    ]
    for call in known_only_to_others:
        message = refused(call, "no-such-removal")
        missing = refused(lambda: clinic.get_removal("0" * 16), "no-such-removal")
        assert message == missing.replace("0" * 16, removal.request_id)
    assert clinic.list_removals("hospital") == []
    assert rig.state.removal(removal.request_id).state is Kept.RECEIVED


def test_a_request_belongs_to_whom_the_data_belongs(rig: Rig) -> None:
    """Not to whoever made it."""
    removal = asked(rig, trained(rig), by="operator")
    clinic = rig.connect("clinic")
    assert clinic.get_removal(removal.request_id).requested_by == "operator"
    assert removal.request_id in [listed.request_id for listed in clinic.list_removals()]
    assert clinic.cancel_removal(removal.request_id).reason == "cancelled by clinic"


def test_who_sees_which_requests(rig: Rig) -> None:
    adapter = trained(rig)
    ids = {name: asked(rig, adapter, by=name, client_id=name).request_id for name in CLIENTS}
    for name, seen in {
        "operator": {"clinic", "hospital"},
        "auditor": {"clinic", "hospital"},
        "clinic": {"clinic"},
        "hospital": {"hospital"},
    }.items():
        listed = {removal.request_id for removal in rig.connect(name).list_removals()}
        assert {client for client, request in ids.items() if request in listed} == seen, name
    only = rig.connect("auditor").list_removals("clinic")
    assert {removal.order.client_id for removal in only} == {"clinic"}
    assert rig.connect("auditor").get_removal(ids["clinic"]).request_id == ids["clinic"]
    reader = rig.connect("reader")
    for call in (
        lambda: reader.list_removals(),
        lambda: reader.get_removal(ids["clinic"]),
        lambda: reader.plan_removal(an_order(adapter)),
    ):
        refused(call, "not-allowed")
    refused(lambda: rig.connect("auditor").cancel_removal(ids["clinic"]), "not-allowed")


def test_only_an_operator_gives_up_a_guarantee(rig: Rig) -> None:
    adapter = trained(rig, epsilon=0.5)
    order = an_order(adapter, void_guarantee=True)
    refused(lambda: rig.connect("clinic").plan_removal(order), "not-allowed")
    plan = rig.connect("operator").plan_removal(order)
    assert plan.guarantee == "void"
    assert any("void" in note for note in plan.notes)


# --- what cannot be asked for


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"adapter": "0" * 64}, "no-such-adapter", "no adapter"),
        ({"adapter": "staging"}, "no-such-a", "staging"),
        ({"adapter": "../etc"}, "invalid", "named by an alias"),
        ({"client_id": "lab"}, "never-trained", "no round of adapter"),
        ({"num_records": 0}, "invalid", "no records to be forgotten"),
        ({"num_records": 100}, "invalid", "all 100 rows of client clinic"),
        ({"num_records": 101}, "never-trained", "took part with 100 rows, and 101"),
        ({"method": "none"}, "invalid", "a method is one of loku, retrain"),
        ({"method": "refuse"}, "invalid", "a method is one of"),
        ({"method": "forget-me"}, "invalid", "a method is one of"),
        ({"private_job": True}, "invalid", "runs at the client"),
        ({"private_job": True, "place": "client"}, "invalid", "no privacy guarantee"),
        ({"private_job": True, "place": "client", "method": "kl"}, "invalid", "only loku"),
        (
            {"settings": {"gates": {}}},
            "invalid",
            "an object of unlearning, gate, private, precisions",
        ),
        ({"settings": {"gate": []}}, "invalid", "'gate' must be an object"),
        ({"settings": {"gate": {"max_remain": 1}}}, "invalid", "did you mean max_remaining"),
        ({"settings": {"gate": {"max_remaining": 1.0}}}, "invalid", "max_remaining"),
        ({"settings": {"unlearning": {"num_epochs": 0}}}, "invalid", "num_epochs"),
        ({"settings": {"unlearning": {"method": "kl"}}}, "invalid", "those of another"),
        ({"settings": {"precisions": "fp32"}}, "invalid", "precisions are some of"),
        ({"settings": {"precisions": ["fp8"]}}, "invalid", "precisions are some of"),
        ({"settings": {"precisions": []}}, "invalid", "precisions are some of"),
        (
            {"method": "retrain", "settings": {"unlearning": {"num_epochs": 2}}},
            "invalid",
            "retraining has no settings",
        ),
        ({"method": "retrain"}, "invalid", "only clinic itself can mark"),
        ({"deadline": datetime(2020, 1, 1, tzinfo=UTC)}, "invalid", "deadline has passed"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_what_cannot_be_asked_for(
    rig: Rig, plain: str, change: dict[str, Any], code: str, message: str
) -> None:
    operator = rig.connect("operator")
    order = RemovalOrder(**{"adapter": plain, "client_id": "clinic", "num_records": 3, **change})
    before = len(rig.state.removals())
    with pytest.raises(RemoteError) as error:
        operator.request_removal(order, records_digest="c" * 64)
    assert error.value.code.startswith(code), str(error.value)
    assert message in str(error.value)
    assert len(rig.state.removals()) == before


@pytest.fixture(scope="module")
def plain(rig: Rig) -> str:
    """A version without privacy."""
    return trained(rig)


def test_a_request_that_is_no_request(rig: Rig, plain: str) -> None:
    clinic = rig.connect("clinic")
    order = an_order(plain)
    for digest in ("", "C" * 64, "c" * 63):
        refused(lambda d=digest: clinic.request_removal(order, records_digest=d), "invalid")
    refused(
        lambda: clinic.request_removal(order, records_digest=DIGEST, idempotency_key=" "), "invalid"
    )
    refused(lambda: clinic.get_removal("nine"), "invalid")
    for text in ("{", "[]", '{"a": NaN}', '{"gate": {}, "gate": {}}', "x" * 70_000):
        raw = removals_pb2.RemovalOrder(
            adapter=plain, client_id="clinic", place="server", method="loku", settings_json=text
        )
        refused(lambda r=raw: clinic._call(clinic._removals.PlanRemoval, r), "invalid")
    raw = removals_pb2.RemovalOrder(adapter=plain, client_id="clinic", place="moon", method="loku")
    refused(lambda: clinic._call(clinic._removals.PlanRemoval, raw), "invalid")


def test_a_withdrawn_version(rig: Rig) -> None:
    adapter = trained(rig)
    rig.state.withdraw_adapter(adapter, "operator", "")
    message = refused(lambda: asked(rig, adapter), "withdrawn")
    assert adapter in message


def test_an_adapter_with_a_guarantee(rig: Rig) -> None:
    adapter = trained(rig, epsilon=0.5)
    message = refused(lambda: asked(rig, adapter), "guarantee")
    assert all(way in message for way in ("retrain", "--void-guarantee"))
    refused(lambda: asked(rig, adapter, **HERE), "guarantee")
    assert asked(rig, adapter, method="retrain").plan.guarantee == "charged"
    assert "--here --private" in message
    private = asked(rig, adapter, **HERE, private_job=True, settings={"private": {"epsilon": 0.25}})
    assert private.plan.guarantee == "charged"
    job = rig.connect("clinic").get_removal_job(private.request_id)
    order = JobOrder.from_json(job.order_json)
    assert order.is_private
    assert (order.private.epsilon, order.num_records) == (0.25, private.order.num_records)
    for settings, message in (
        ({"private": {"epsilon": 0}}, "private.*epsilon|epsilon"),
        ({"private": {"sigma": 1}}, "sigma"),
        ({"unlearning": {"num_epochs": 3}}, "section 'private'"),
    ):
        told = refused(
            lambda s=settings: asked(rig, adapter, **HERE, private_job=True, settings=s),  # type: ignore[misc]
            "invalid",
        )
        assert re.search(message, told)
    told = refused(
        lambda: asked(rig, trained(rig), settings={"private": {"epsilon": 1.0}}), "invalid"
    )
    assert "only a private job" in told
    refused(
        lambda: asked(rig, adapter, by="operator", **HERE, private_job=True, void_guarantee=True),
        "invalid",
    )


def test_retraining_needs_no_records_where_clients_hold_them(rig: Rig) -> None:
    adapter = trained(rig)
    removal = asked(rig, adapter, method="retrain")
    assert (removal.state, removal.plan.claim) == (RemovalState.PLANNED, "exact")
    assert removal.plan.clean_ancestor is not None
    refused(lambda: rig.connect("clinic").get_removal_job(removal.request_id), "wrong-state")


def test_a_run_with_simulated_clients(rig: Rig) -> None:
    """The server holds their rows, so what to forget has to be sent, whatever the method."""
    adapter = trained(
        rig, federation={"clients": "simulated"}, data={"train": "synthetic:messages/train"}
    )
    refused(lambda: asked(rig, adapter, by="operator", **HERE), "invalid")
    removal = asked(rig, adapter, by="operator", method="retrain")
    assert removal.state is RemovalState.RECEIVED
    only_forget = JobRows(forget=ROWS.forget)
    assert rig.connect("operator").upload_records(removal, only_forget).state is (
        RemovalState.PLANNED
    )


def test_too_many_at_once(tmp_path: Path) -> None:
    with listening(tmp_path, max_open_removals=2, max_records_bytes=1000) as rig:
        adapter = trained(rig)
        first = asked(rig, adapter)
        asked(rig, adapter, by="operator")
        assert "2 removals of clinic are open" in refused(lambda: asked(rig, adapter), "busy")
        asked(rig, adapter, by="hospital", client_id="hospital")
        many = JobRows(forget=ROWS.forget, retain=[{"text": str(n)} for n in range(100)])
        refused(lambda: rig.connect("clinic").upload_records(first, many), "too-large")
        rig.connect("clinic").cancel_removal(first.request_id)
        asked(rig, adapter)


# --- the records


def test_records_are_sent_once(rig: Rig) -> None:
    removal = asked(rig, trained(rig))
    clinic = rig.connect("clinic")
    request = removals_pb2.UploadRecordsRequest(
        request_id=removal.request_id,
        sealed=seal(removal.job_public_key, removal.request_id, ROWS.to_bytes()),
    )
    for _ in range(2):
        sent = clinic._call(clinic._removals.UploadRecords, request)
        assert sent.state == removals_pb2.REMOVAL_STATE_PLANNED
    refused(lambda: clinic.upload_records(removal, ROWS), "wrong-state")
    with pytest.raises(InputError, match="takes no records"):
        clinic.upload_records(clinic.get_removal(removal.request_id), ROWS)


def test_an_upload_that_is_refused_deletes_nothing(rig: Rig) -> None:
    """Content is stored by its digest: what somebody else's artifact is must stay."""
    removal = asked(rig, trained(rig))
    clinic = rig.connect("clinic")
    clinic.upload_records(removal, ROWS)
    artifact = rig.artifacts.put(b"an adapter of somebody else, at least 48 bytes long")
    request = removals_pb2.UploadRecordsRequest(
        request_id=removal.request_id, sealed=rig.artifacts.get(artifact)
    )
    refused(lambda: clinic._call(clinic._removals.UploadRecords, request), "wrong-state")
    assert rig.artifacts.has(artifact)
    other = asked(rig, trained(rig))
    request.request_id = other.request_id
    refused(lambda: clinic._call(clinic._removals.UploadRecords, request), "invalid")
    clinic.cancel_removal(other.request_id)
    sweep(rig.state, rig.artifacts)
    assert rig.artifacts.has(artifact)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (JobRows(forget=ROWS.forget[:2], retain=ROWS.retain), "3 records were announced and 2"),
        (JobRows(forget=ROWS.forget, retain=ROWS.retain[:1]), "at least 2 rows that stay, and 1"),
    ],
)
def test_other_records_than_announced(rig: Rig, plain: str, rows: JobRows, message: str) -> None:
    removal = asked(rig, plain)
    clinic = rig.connect("clinic")
    assert message in refused(lambda: clinic.upload_records(removal, rows), "invalid")
    assert clinic.upload_records(removal, ROWS).state is RemovalState.PLANNED
    clinic.cancel_removal(removal.request_id)


@pytest.mark.parametrize(
    "content",
    [
        b"no json",
        b'{"forget":[],"retain":[],"held_out":[]}',
        json.dumps({"forget": ROWS.forget, "retain": ROWS.forget, "held_out": []}).encode(),
    ],
    ids=["no json", "nothing to forget", "retain overlaps"],
)
def test_records_that_no_job_could_use(rig: Rig, plain: str, content: bytes) -> None:
    removal = asked(rig, plain)
    clinic = rig.connect("clinic")
    request = removals_pb2.UploadRecordsRequest(
        request_id=removal.request_id,
        sealed=seal(removal.job_public_key, removal.request_id, content),
    )
    message = refused(lambda: clinic._call(clinic._removals.UploadRecords, request), "invalid")
    assert SECRET not in message
    clinic.cancel_removal(removal.request_id)


def test_records_sealed_for_another_request(rig: Rig, plain: str) -> None:
    one, two = asked(rig, plain), asked(rig, plain)
    clinic = rig.connect("clinic")
    mixed = replace(one, request_id=two.request_id)
    assert "another key" in refused(lambda: clinic.upload_records(mixed, ROWS), "invalid")
    for removal in (one, two):
        clinic.cancel_removal(removal.request_id)


def test_nothing_of_a_row_is_written_down(rig: Rig, plain: str) -> None:
    """Neither in the audit log, nor in events, nor anywhere in the database or the store."""
    removal = asked(rig, plain, by="clinic")
    clinic = rig.connect("clinic")
    clinic.upload_records(removal, ROWS)
    refused(lambda: clinic.upload_records(removal, ROWS), "wrong-state")
    refused(lambda: asked(rig, plain, settings={"gate": {SECRET: SECRET}}), "invalid")
    clinic.cancel_removal(removal.request_id, "enough")
    assert all(SECRET not in entry.text for entry in rig.state.audit(limit=10**6))
    for path in rig.folder.rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path


# --- watching and cancelling


def test_watching_tells_the_past_then_the_present_then_ends(rig: Rig, plain: str) -> None:
    removal = asked(rig, plain, **HERE)
    seen: list[RemovalEvent] = []
    live = threading.Event()

    def watch() -> None:
        for event in rig.connect("auditor").watch_removal(removal.request_id):
            seen.append(event)
            live.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert live.wait(20)
    rig.state.add_removal_event(removal.request_id, events.PROGRESS, {"phase": "a", "share": 0.5})
    rig.removals.turn(removal.request_id, Kept.FAILED, reason="the gate")
    watcher.join(20)
    assert not watcher.is_alive(), "the stream ends with the request"
    assert [event.position for event in seen] == [1, 2, 3]
    assert [event.kind for event in seen] == ["state", "progress", "state"]
    assert seen[0].body == {"state": "planned", "reason": ""}
    assert seen[1].body == {"phase": "a", "share": 0.5}
    assert seen[2].body == {"state": "failed", "reason": "the gate"}
    again = rig.connect("clinic").watch_removal(removal.request_id, after=2)
    assert [event.position for event in again] == [3]


def test_watching_lasts_until_the_replicas_follow(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = trained(rig)
    rig.connect("operator").deploy_adapter(adapter, "watched")
    removal = asked(rig, adapter, **HERE)
    rig.removals.publish(removal.request_id)
    events_ = rig.connect("clinic").watch_removal(removal.request_id)
    assert [next(events_).body["state"] for _ in range(4)][-1] == "published"
    assert not watching._nothing_comes(rig.state, rig.state.removal(removal.request_id))
    rig.state.add_removal_event(removal.request_id, events.CONFIRMED, {"replicas": []})
    assert [event.kind for event in events_] == ["confirmed"]
    # A coordinator that was killed between the two does not leave watchers waiting for ever.
    other = asked(rig, adapter, **HERE)
    rig.removals.publish(other.request_id)
    monkeypatch.setattr(watching, "CONFIRMED_WITHIN", timedelta(0))
    assert len(list(rig.connect("clinic").watch_removal(other.request_id))) == 4


def test_cancelling(rig: Rig, plain: str) -> None:
    clinic = rig.connect("clinic")
    removal = asked(rig, plain)
    cancelled = clinic.cancel_removal(removal.request_id, "a mistake")
    assert (cancelled.state, cancelled.reason) == (RemovalState.CANCELLED, "a mistake")
    assert cancelled.job_public_key == b""
    assert clinic.cancel_removal(removal.request_id, "again").reason == "a mistake"
    refused(lambda: clinic.upload_records(removal, ROWS), "wrong-state")
    done = asked(rig, plain, **HERE)
    rig.removals.publish(done.request_id)
    message = refused(lambda: clinic.cancel_removal(done.request_id), "wrong-state")
    assert message == (
        f"removal {done.request_id} is published; only one that has published nothing can be "
        "cancelled"
    )
    by_operator = rig.connect("operator").cancel_removal(asked(rig, plain).request_id)
    assert by_operator.reason == "cancelled by operator"


def test_nobody_but_the_client_says_what_its_job_made(rig: Rig) -> None:
    """Also whoever operates the server: the charge in a receipt is the client's own word."""
    rig.holders.issue("chief", Role.OPERATOR, Role.DATA_OWNER)
    removal = asked(rig, trained(rig), **HERE)
    before = list(rig.removals.submitted)
    for name, code in (("chief", "not-yours"), ("operator", "not-allowed")):
        caller = rig.connect(name)
        refused(lambda c=caller: c.get_removal_job(removal.request_id), code)  # type: ignore[misc]
        refused(
            lambda c=caller: c.submit_successor(removal.request_id, b"t", {}, {}),  # type: ignore[misc]
            code,
        )
    assert rig.removals.submitted == before


def test_a_receipt_before_its_time(rig: Rig, plain: str) -> None:
    removal = asked(rig, plain)
    refused(lambda: rig.connect("clinic").get_receipt(removal.request_id), "wrong-state")
    refused(
        lambda: rig.connect("clinic").submit_successor(removal.request_id, b"t", {}, {}),
        "wrong-state",
    )
    rig.connect("clinic").cancel_removal(removal.request_id)


# --- requests that meet


def test_a_request_begins_where_the_one_before_ended(rig: Rig) -> None:
    """Otherwise the second would bring back what the first has removed."""
    run_id = submitted(rig)
    first_version = play_round(rig, run_id, 1, CLIENTS, epsilon=None)
    second = asked(rig, first_version, by="hospital", client_id="hospital", **HERE)
    first = asked(rig, first_version, **HERE)
    # As the engine publishes: the successor is a version of its own, the affected is withdrawn.
    successor = play_round(rig, run_id, 2, CLIENTS, epsilon=None)
    exported(rig, successor)
    rig.state.withdraw_adapter(first_version, first.request_id, "")
    rig.removals.publish(first.request_id, successor=successor)
    hospital = rig.connect("hospital")
    job = hospital.get_removal_job(second.request_id)
    assert job.adapter == rig.artifacts.get(rig.state.adapter(successor).artifact)
    again = hospital.get_removal(second.request_id)
    assert again.order.adapter == again.plan.adapter == successor
    assert again.plan.affected == (successor,)
    told = rig.state.removal_events(second.request_id)[-1]
    assert first.request_id in str(told.body["message"])


def test_a_request_whose_version_an_operator_withdrew(rig: Rig) -> None:
    adapter = trained(rig)
    removal = asked(rig, adapter, **HERE)
    rig.state.withdraw_adapter(adapter, "operator", "broken")
    refused(lambda: rig.connect("clinic").get_removal_job(removal.request_id), "withdrawn")


def test_the_run_under_way_is_told_of(rig: Rig) -> None:
    adapter = trained(rig)
    run_id = rig.state.adapter(adapter).run_id
    notes = rig.connect("clinic").plan_removal(an_order(adapter)).notes
    assert any(f"run {run_id} is under way" in note for note in notes)
    rig.engine.turn(run_id, RunStatus.FINISHED)
    notes = rig.connect("clinic").plan_removal(an_order(adapter)).notes
    assert not any("under way" in note for note in notes)
