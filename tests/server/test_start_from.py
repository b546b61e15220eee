"""Runs that go on from a version: what they begin with, and what their epsilon adds up to."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load

from fedpeft.dp.accounting import epsilon
from fedpeft.errors import RemoteError
from fedpeft.federated.messages import RoundPlan, RoundReply
from fedpeft_server import events
from fedpeft_server.records import RunStatus
from fedpeft_server.run_context import UNDER_WAY
from tests.federated.client_rounds import DELTA
from tests.federated.small_runs import OFF
from tests.server.control_rig import Rig, listening
from tests.server.local_federation import LocalFederation, ended, make_federation, remote_config
from tests.server.removal_requests import trained
from tests.server.runs import config
from tests.server.test_remote_run import PRIVATE, SIZES, simulated_config
from tests.tiny_models import save_bert

FIRST, SECOND = "00000000000000aa", "00000000000000bb"


@pytest.fixture
def federation(tmp_path: Path, tiny_bert: Path) -> LocalFederation:
    return make_federation(tmp_path, tiny_bert, **SIZES)


def remote(federation: LocalFederation, model: Path, privacy: dict[str, Any], **more: Any) -> Any:
    simulated = simulated_config(federation, model, privacy, num_rounds=1)
    return remote_config(simulated, **{"num_clients": 3, "quorum": 2} | more)


def finished(federation: LocalFederation, run_id: str, **tamper: Any) -> Any:
    """Brings a run to its good end; its last version, and the rounds."""
    if tamper:
        federation.post.tamper = tamper["tamper"]
    with federation.coordinator() as (engine, state):
        engine.recover()
        run = ended(state, run_id)
        assert run.status is RunStatus.FINISHED, run.reason
        newest = state.newest_adapter(run_id)
        assert newest is not None
        return newest, state.adapters(run_id), state.rounds(run_id)


def failed(federation: LocalFederation, run_id: str) -> str:
    """Brings a run to its bad end before a client is asked; why."""
    with federation.coordinator() as (engine, state):
        engine.recover()
        after = 0
        while state.run(run_id).status in UNDER_WAY:
            news = state.wait_events(run_id, after, 60.0)
            assert news, "the run neither goes on nor ends"
            asked = {event.kind for event in news} & {events.ACCEPTED, events.REFUSED}
            assert not asked, "a client was offered the run"
            after = news[-1].position
        run = state.run(run_id)
    assert run.status is RunStatus.FAILED
    return run.reason


def test_it_begins_with_the_version_and_says_so(
    federation: LocalFederation, tiny_bert: Path
) -> None:
    settings = remote(federation, tiny_bert, OFF)
    before, _, _ = finished(federation, federation.submit(settings, FIRST))
    asked: list[str] = []

    def seen(client_id: str, plan: RoundPlan, reply: RoundReply, blob: bytes | None) -> Any:
        asked.append(plan.adapter_digest)
        return reply, blob

    run_id = federation.submit(settings, SECOND, start_from=before.digest)
    after, [first, last], _ = finished(federation, run_id, tamper=seen)
    assert set(asked) == {before.digest}
    assert (first.round, first.digest, first.parent) == (0, before.digest, before.digest)
    assert last.parent == before.digest
    assert after.digest != before.digest
    with federation.coordinator() as (_, state):
        line = [version.digest for version in state.lineage(after.digest)]
    assert before.digest in line
    tensors = load(federation.artifacts.get(after.artifact))
    assert tensors.keys() == load(federation.artifacts.get(before.artifact)).keys()


@pytest.mark.parametrize("is_heard", [True, False])
def test_epsilon_counts_what_came_before(
    federation: LocalFederation, tiny_bert: Path, is_heard: bool
) -> None:
    """Also that of a client whose answers of the second run are all lost."""
    settings = remote(federation, tiny_bert, PRIVATE | {"target_epsilon": 2.0})
    before, _, _ = finished(federation, federation.submit(settings, FIRST))

    def losing(client_id: str, plan: RoundPlan, reply: RoundReply, blob: bytes | None) -> Any:
        if client_id != "clinic" or is_heard:
            return reply, blob
        return reply, b"cut off"

    run_id = federation.submit(settings, SECOND, start_from=before.digest)
    after, _, [record] = finished(federation, run_id, tamper=losing)
    assert ("clinic" in record.cohort) == is_heard
    for name, client in federation.post.clients.items():
        charged = [r.event for r in client.ledger.reservations(client.rows.dataset)]
        assert len(charged) == 2
        assert client.spent() == epsilon(charged, DELTA) > before.epsilon[name]
        assert after.epsilon[name] == pytest.approx(client.spent(), rel=1e-9)
        assert after.epsilon[name] >= client.spent()


@pytest.mark.slow
def test_without_privacy_after_it_there_is_no_epsilon(
    federation: LocalFederation, tiny_bert: Path
) -> None:
    settings = remote(federation, tiny_bert, PRIVATE)
    before, _, _ = finished(federation, federation.submit(settings, FIRST))
    for client in federation.post.clients.values():
        client.policy = client.policy.model_copy(update={"allow_without_privacy": True})
    without = remote(federation, tiny_bert, OFF)
    run_id = federation.submit(without, SECOND, start_from=before.digest)
    after, _, _ = finished(federation, run_id)
    assert before.epsilon
    assert not after.epsilon


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"adapter": {"rank": 3, "target_modules": ["query", "value"]}}, "same rank and modules"),
        ({"adapter": {"rank": 4, "target_modules": ["query"]}}, "same rank and modules"),
    ],
)
def test_a_version_that_does_not_fit(
    federation: LocalFederation, tiny_bert: Path, change: dict[str, Any], match: str
) -> None:
    settings = remote(federation, tiny_bert, OFF)
    before, _, _ = finished(federation, federation.submit(settings, FIRST))
    content = settings.model_dump(mode="json", exclude_unset=True) | change
    run_id = federation.submit(type(settings)(**content), SECOND, start_from=before.digest)
    assert match in failed(federation, run_id)


def test_a_version_on_another_base_model(
    federation: LocalFederation, tiny_bert: Path, tmp_path: Path
) -> None:
    """Of the same shapes: only its digest tells."""
    before, _, _ = finished(federation, federation.submit(remote(federation, tiny_bert, OFF)))
    other = save_bert(tmp_path / "other", seed=1)
    run_id = federation.submit(remote(federation, other, OFF), SECOND, start_from=before.digest)
    assert "name a version on the same base model" in failed(federation, run_id)


def test_a_version_with_other_labels(
    federation: LocalFederation, tiny_bert: Path, tmp_path: Path
) -> None:
    """As many of them, so that every tensor fits."""
    settings = remote(federation, tiny_bert, OFF)
    before, _, _ = finished(federation, federation.submit(settings))
    content = settings.model_dump(mode="json", exclude_unset=True)
    renamed = tmp_path / "renamed.jsonl"
    rows = [json.loads(line) for line in Path(content["data"]["test"]).read_text().splitlines()]
    renamed.write_text("".join(json.dumps(r | {"label": f"new {r['label']}"}) + "\n" for r in rows))
    content["data"]["test"] = str(renamed)
    run_id = federation.submit(type(settings)(**content), SECOND, start_from=before.digest)
    assert "name a version with the same labels" in failed(federation, run_id)


def test_nobody_is_charged_for_a_round_from_a_withdrawn_version(
    federation: LocalFederation, tiny_bert: Path
) -> None:
    """A removal withdrew what a run stands at, and somebody resumes it."""
    run_id = federation.submit(remote(federation, tiny_bert, PRIVATE, num_rounds=2))
    with federation.coordinator() as (engine, state):

        def stop(client_id: str, plan: RoundPlan, reply: RoundReply, blob: bytes | None) -> Any:
            if plan.round == 2 and state.run(run_id).status is RunStatus.RUNNING:
                engine.stop(run_id, "a removal withdrew the version it goes on from")
            return reply, blob

        federation.post.tamper = stop
        engine.recover()
        assert ended(state, run_id).status is RunStatus.STOPPED
        newest = state.newest_adapter(run_id)
        assert newest is not None
        assert newest.round == 1
        state.withdraw_adapter(newest.digest, "operator", "")
        clients = federation.post.clients
        spent = {name: client.spent() for name, client in clients.items()}
        federation.post.asked.clear()
        engine.resume(run_id)
        run = ended(state, run_id)
    assert run.status is RunStatus.FAILED
    assert "which the run goes on from, was withdrawn by operator" in run.reason
    assert federation.post.asked == []
    assert {name: client.spent() for name, client in clients.items()} == spent


def test_a_version_that_was_withdrawn_meanwhile(
    federation: LocalFederation, tiny_bert: Path
) -> None:
    settings = remote(federation, tiny_bert, OFF)
    before, _, _ = finished(federation, federation.submit(settings, FIRST))
    run_id = federation.submit(settings, SECOND, start_from=before.digest)
    with federation.coordinator() as (_, state):
        state.withdraw_adapter(before.digest, "operator", "wrong")
    assert "withdrawn" in failed(federation, run_id)


# --- as it is submitted


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with listening(tmp_path_factory.mktemp("federation")) as opened:
        yield opened


def test_a_version_is_named_as_everywhere(rig: Rig) -> None:
    operator = rig.connect("operator")
    adapter = trained(rig)
    operator.deploy_adapter(adapter, "production")
    source = rig.state.adapter(adapter).run_id
    for name in (adapter, adapter[:8], "production", source):
        run = operator.submit_run(config(), start_from=name)
        assert rig.state.run(run.run_id).start_from == adapter
    assert rig.state.run(operator.submit_run(config()).run_id).start_from is None


def test_the_same_key_is_for_the_same_version(rig: Rig) -> None:
    operator = rig.connect("operator")
    first, other = trained(rig), trained(rig)
    run = operator.submit_run(config(), start_from=first, idempotency_key="k")
    again = operator.submit_run(config(), start_from=first, idempotency_key="k")
    assert again.run_id == run.run_id
    for name in (other, ""):
        with pytest.raises(RemoteError) as error:
            operator.submit_run(config(), start_from=name, idempotency_key="k")
        assert error.value.code == "already-exists"


def test_what_no_run_goes_on_from(rig: Rig) -> None:
    operator = rig.connect("operator")
    private = trained(rig, epsilon=1.0, privacy={"enabled": True, "delta": 1e-5})
    gone = trained(rig)
    operator.withdraw_adapter(gone)
    simulated = config(
        federation={"clients": "simulated"}, data={"train": "synthetic:messages/train"}
    )
    other_rank = config(adapter={"rank": 8})
    other_scaling = config(adapter={"alpha": 8.0})
    other_delta = config(privacy={"enabled": True, "delta": 1e-6})
    for settings, name, code in (
        (config(), "f" * 64, "no-such-adapter"),
        (config(), "unknown-alias", "no-such-adapter"),
        (config(), "A B", "invalid"),
        (config(), gone, "withdrawn"),
        (simulated, private, "invalid"),
        (other_delta, private, "invalid"),
        (other_rank, private, "invalid"),
        (other_scaling, private, "invalid"),
    ):
        with pytest.raises(RemoteError) as error:
            operator.submit_run(settings, start_from=name)
        assert error.value.code == code, str(error.value)
    same_scaling = config(adapter={"alpha": 4.0}, privacy={"enabled": True, "delta": 1e-5})
    assert operator.submit_run(same_scaling, start_from=private).num_rounds == 2
    assert (
        rig.state.run(
            operator.submit_run(
                config(privacy={"enabled": True, "delta": 1e-5}), start_from=private
            ).run_id
        ).start_from
        == private
    )
