"""The catalogue of refusals is complete: each entry can be met, and nothing else is ever sent."""

import ast
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

import fedpeft_server
from fedpeft.errors import FedpeftError, RemoteError, UnavailableError, VerificationError
from fedpeft.wire.catalogue import BY_CODE, Refused
from fedpeft.wire.v1 import adapters_pb2, clients_pb2, removals_pb2, runs_pb2, server_pb2
from fedpeft_server.records import RunStatus
from tests.server.control_rig import Rig, listening
from tests.server.nodes import enrol, invite, node_key
from tests.server.raw_calls import WIRE, Outcome, channel, finished, send, send_signed, signature
from tests.server.runs import config, play_round, submitted

UNKNOWN_RUN = "0" * 16


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with listening(tmp_path, max_calls_per_caller=2, max_held_out_bytes=1000) as opened:
        yield opened


def not_trusted(rig: Rig) -> Outcome:
    rig.holders.authority.revoke(rig.holders.serial("reader"))
    return unsigned(rig, "reader", "Server/GetServer")


def not_allowed(rig: Rig) -> Outcome:
    return unsigned(rig, "reader", "Server/ListAudit")


def not_signed(rig: Rig) -> Outcome:
    return unsigned(rig, "operator", "Runs/SubmitRun")


def replayed(rig: Rig) -> Outcome:
    request = clients_pb2.InviteClientRequest(client_id="a", valid_hours=1).SerializeToString()
    path = f"{WIRE}Clients/InviteClient"
    beside = signature(rig.holders.of("operator"), path, request)
    with channel(rig, "operator") as opened:
        assert send(opened, path, request, beside).code == "ok"
        return send(opened, path, request, beside)


def invalid(rig: Rig) -> Outcome:
    return unsigned(rig, "operator", "Runs/GetRun", b"\xff\xff\xff")


def too_large(rig: Rig) -> Outcome:
    request = submission(held_out=b"x" * 1001, held_out_suffix=".csv")
    return send_signed(rig, "operator", "Runs/SubmitRun", request)


def busy(rig: Rig) -> Outcome:
    run_id = submitted(rig)
    watch = runs_pb2.WatchRunRequest(run_id=run_id).SerializeToString()
    with channel(rig, "reader") as opened:
        streams = [opened.unary_stream(f"{WIRE}Runs/WatchRun")(watch) for _ in range(2)]
        for stream in streams:
            next(stream)
        found = send(opened, f"{WIRE}Server/GetServer", b"")
        for stream in streams:
            stream.cancel()
    return found


def unknown_method(rig: Rig) -> Outcome:
    return unsigned(rig, "operator", "Runs/Nothing")


def no_such_service(rig: Rig) -> Outcome:
    with channel(rig, "reader") as opened:
        return send(opened, "/grpc.health.v1.Health/Check", b"\x0a\x01x")


def old_protocol(rig: Rig) -> Outcome:
    request = clients_pb2.EnrolClientRequest(
        token="t", node_public_key=node_key(), protocol=0, version="0"
    )
    return send_signed(rig, "clinic", "Clients/EnrolClient", request)


def no_such_run(rig: Rig) -> Outcome:
    request = runs_pb2.StopRunRequest(run_id=UNKNOWN_RUN)
    return send_signed(rig, "operator", "Runs/StopRun", request)


def no_such_client(rig: Rig) -> Outcome:
    request = clients_pb2.RevokeClientRequest(client_id="nobody", reason="gone")
    return send_signed(rig, "operator", "Clients/RevokeClient", request)


def no_such_adapter(rig: Rig) -> Outcome:
    request = adapters_pb2.GetAdapterRequest(adapter="a" * 8).SerializeToString()
    return unsigned(rig, "reader", "Adapters/GetAdapter", request)


def not_exported(rig: Rig) -> Outcome:
    adapter = play_round(rig, submitted(rig), 1)
    request = adapters_pb2.DownloadAdapterRequest(adapter=adapter).SerializeToString()
    return unsigned(rig, "reader", "Adapters/DownloadAdapter", request)


def wrong_state(rig: Rig) -> Outcome:
    run_id = submitted(rig)
    rig.engine.turn(run_id, RunStatus.FINISHED)
    return send_signed(rig, "operator", "Runs/StopRun", runs_pb2.StopRunRequest(run_id=run_id))


def withdrawn(rig: Rig) -> Outcome:
    adapter = play_round(rig, submitted(rig), 1)
    rig.connect("operator").withdraw_adapter(adapter)
    request = adapters_pb2.DownloadAdapterRequest(adapter=adapter).SerializeToString()
    return unsigned(rig, "reader", "Adapters/DownloadAdapter", request)


def no_such_alias(rig: Rig) -> Outcome:
    request = adapters_pb2.GetAliasRequest(name="staging").SerializeToString()
    return unsigned(rig, "reader", "Adapters/GetAlias", request)


def no_such_removal(rig: Rig) -> Outcome:
    request = removals_pb2.GetRemovalRequest(request_id="0" * 16).SerializeToString()
    return unsigned(rig, "operator", "Removals/GetRemoval", request)


def not_yours(rig: Rig) -> Outcome:
    return planned(rig, "clinic", client_id="hospital")


def never_trained(rig: Rig) -> Outcome:
    return planned(rig, "operator", client_id="lab")


def guarantee(rig: Rig) -> Outcome:
    return planned(rig, "clinic", client_id="clinic")


def planned(rig: Rig, by: str, *, client_id: str) -> Outcome:
    """What a removal from an adapter with a privacy guarantee would do."""
    request = removals_pb2.RemovalOrder(
        adapter=play_round(rig, submitted(rig), 1),
        client_id=client_id,
        place="server",
        method="loku",
        num_records=3,
    )
    return unsigned(rig, by, "Removals/PlanRemoval", request.SerializeToString())


def bad_token(rig: Rig) -> Outcome:
    request = clients_pb2.EnrolClientRequest(
        token="guessed", node_public_key=node_key(), protocol=1, version="0"
    )
    return send_signed(rig, "clinic", "Clients/EnrolClient", request)


def already_exists(rig: Rig) -> Outcome:
    first, second = submission(), submission(federation={"num_rounds": 3})
    assert send_signed(rig, "operator", "Runs/SubmitRun", first).code == "ok"
    return send_signed(rig, "operator", "Runs/SubmitRun", second)


def revoked(rig: Rig) -> Outcome:
    enrol(rig, "clinic")
    rig.connect("operator").revoke_client("clinic", "left")
    return unsigned(rig, "clinic", "Server/GetServer")


def database_down(rig: Rig) -> Outcome:
    def refuse(*_: object) -> None:
        raise UnavailableError("postgresql://secret-host is down")

    rig.state.runs = refuse  # type: ignore[method-assign, assignment]
    return unsigned(rig, "reader", "Runs/ListRuns")


def damaged(rig: Rig) -> Outcome:
    def refuse(*_: object) -> None:
        raise VerificationError("entry 3 of the audit log: it was changed")

    invite(rig, "clinic")
    rig.state.audit = refuse  # type: ignore[method-assign, assignment]
    request = server_pb2.ListAuditRequest(limit=10).SerializeToString()
    return unsigned(rig, "auditor", "Server/ListAudit", request)


def shutting_down(rig: Rig) -> Outcome:
    watch = runs_pb2.WatchRunRequest(run_id=submitted(rig)).SerializeToString()
    with channel(rig, "reader") as opened:
        stream = opened.unary_stream(f"{WIRE}Runs/WatchRun")(watch, timeout=20)
        next(stream)
        stopping = threading.Thread(target=rig.control.stop)
        stopping.start()
        found = finished(stream)
        stopping.join()
    return found


def internal(rig: Rig) -> Outcome:
    def fail(*_: object) -> None:
        raise RuntimeError("the row was: patient 17, HIV positive")

    rig.state.runs = fail  # type: ignore[method-assign, assignment]
    found = unsigned(rig, "reader", "Runs/ListRuns")
    assert found.request_id in found.message
    assert "patient" not in found.message
    return found


CASES: dict[Refused, Callable[[Rig], Outcome]] = {
    Refused.NOT_TRUSTED: not_trusted,
    Refused.NOT_ALLOWED: not_allowed,
    Refused.NOT_SIGNED: not_signed,
    Refused.REPLAYED: replayed,
    Refused.INVALID: invalid,
    Refused.TOO_LARGE: too_large,
    Refused.BUSY: busy,
    Refused.UNKNOWN_METHOD: unknown_method,
    Refused.NO_SUCH_SERVICE: no_such_service,
    Refused.OLD_PROTOCOL: old_protocol,
    Refused.NO_SUCH_RUN: no_such_run,
    Refused.NO_SUCH_CLIENT: no_such_client,
    Refused.NO_SUCH_ADAPTER: no_such_adapter,
    Refused.NOT_EXPORTED: not_exported,
    Refused.WITHDRAWN: withdrawn,
    Refused.NO_SUCH_ALIAS: no_such_alias,
    Refused.NO_SUCH_REMOVAL: no_such_removal,
    Refused.NOT_YOURS: not_yours,
    Refused.NEVER_TRAINED: never_trained,
    Refused.GUARANTEE: guarantee,
    Refused.WRONG_STATE: wrong_state,
    Refused.BAD_TOKEN: bad_token,
    Refused.ALREADY_EXISTS: already_exists,
    Refused.REVOKED: revoked,
    Refused.DATABASE_DOWN: database_down,
    Refused.DAMAGED: damaged,
    Refused.SHUTTING_DOWN: shutting_down,
    Refused.INTERNAL: internal,
}


def test_every_entry_has_a_case() -> None:
    assert set(CASES) == set(Refused)
    assert len(BY_CODE) == len(Refused), "two entries share a code"


@pytest.mark.parametrize("refused", Refused, ids=lambda refused: refused.value.code)
def test_each_entry_can_be_met_and_leaves_a_trace(rig: Rig, refused: Refused) -> None:
    """The outcome's status and words were compared with the entry by `send`."""
    outcome = CASES[refused](rig)
    assert outcome.code == refused.value.code
    log = type(rig.state).audit(rig.state, limit=1000)
    assert log[-1].outcome == refused.value.code
    assert outcome.request_id in log[-1].text


def test_only_one_place_ends_a_call() -> None:
    """Whoever else ended one could say anything; the words of exceptions, for a start."""
    ending = {"abort", "abort_with_status", "set_code", "set_details"}
    found = []
    for file in Path(str(fedpeft_server.__file__)).parent.rglob("*.py"):
        if "fleet" in file.parts:
            continue  # Flower's side of the server: no gRPC, and a catalogue of its own
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in ending:
                found.append((file.name, node.attr))
    assert found == [("guard.py", "abort")]


def test_entries_are_of_real_statuses() -> None:
    for refused in Refused:
        assert grpc.StatusCode[refused.value.status] is not grpc.StatusCode.OK


def test_details_are_for_one_line() -> None:
    error = Refused.INVALID.error("a\nb\x1b[2J" + "x" * 5000)
    assert str(error).startswith("a?b?[2J")
    assert len(str(error)) == 1000
    assert isinstance(error, RemoteError)
    with suppress(FedpeftError):
        raise error


def unsigned(rig: Rig, name: str, method: str, body: bytes = b"") -> Outcome:
    with channel(rig, name) as opened:
        return send(opened, WIRE + method, body)


def submission(
    held_out: bytes = b"", held_out_suffix: str = "", **sections: dict[str, object]
) -> runs_pb2.SubmitRunRequest:
    return runs_pb2.SubmitRunRequest(
        config_json=json.dumps(config(**sections)),
        held_out=held_out,
        held_out_suffix=held_out_suffix,
        idempotency_key="key",
    )
