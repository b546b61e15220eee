"""The database goes away and comes back: calls say so, nothing is changed, nothing is lost."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fedpeft.errors import UnavailableError
from fedpeft.remote import Connection
from tests import postgres
from tests.server.control_rig import Rig, listening
from tests.server.nodes import enrol, node_key
from tests.server.raw_calls import WIRE, channel, send
from tests.server.runs import config

pytestmark = pytest.mark.slow


@pytest.fixture
def database() -> Iterator[postgres.Server]:
    with postgres.server() as server:
        yield server


@pytest.fixture
def rig(tmp_path: Path, database: postgres.Server) -> Iterator[Rig]:
    with listening(tmp_path, database=database.url) as opened:
        yield opened


def health(opened: grpc.Channel) -> int:
    answer = health_pb2_grpc.HealthStub(opened).Check(health_pb2.HealthCheckRequest(), timeout=30)
    status: int = answer.status
    return status


def test_calls_while_the_database_is_down(rig: Rig, database: postgres.Server) -> None:
    operator, owner = rig.connect("operator"), rig.connect("clinic")
    run_id = operator.submit_run(config()).run_id
    key = enrol(rig, "clinic")
    with channel(rig, "reader") as opened:
        assert health(opened) == health_pb2.HealthCheckResponse.SERVING
        database.stop()
        try:
            for call in (
                operator.list_runs,
                lambda: operator.get_run(run_id),
                lambda: operator.submit_run(config()),
                lambda: operator.stop_run(run_id),
                lambda: operator.invite_client("hospital"),
                lambda: operator.revoke_client("clinic", "why"),
                lambda: owner.enrol_client(key, token="", version="1"),
                lambda: list(operator.watch_run(run_id)),
                lambda: list(operator.audit()),
            ):
                with pytest.raises(UnavailableError) as refused:
                    call()
                assert "cannot reach what it keeps its records in" in str(refused.value)
                assert "postgresql" not in str(refused.value), "where it is, is nobody's business"
            assert send(opened, f"{WIRE}Runs/ListRuns", b"").code == "database-down"
            assert health(opened) == health_pb2.HealthCheckResponse.NOT_SERVING
            assert not rig.control.is_ready()
            assert operator.get_server().caller == "operator"
        finally:
            database.start()
        assert health(opened) == health_pb2.HealthCheckResponse.SERVING
    assert [run.run_id for run in operator.list_runs()] == [run_id]
    assert rig.state.run(run_id).status == "running"
    assert [c.client_id for c in operator.list_clients()] == ["clinic"]
    assert operator.list_clients()[0].revoked_at is None
    rig.state.verify_audit()


def test_a_patient_caller_gets_its_answer_once(rig: Rig, database: postgres.Server) -> None:
    """The SDK asks again for as long as it was told to; the run is submitted once."""
    database.stop()
    started: list[str] = []
    original = Connection._pause_or_raise

    def start_database(self: Connection, *args: object) -> None:
        if not started:
            database.start()
            started.append("now")
        original(self, *args)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Connection, "_pause_or_raise", start_database)
        run = rig.connect("operator", patience_s=60.0).submit_run(config())
    assert started
    assert [kept.run_id for kept in rig.state.runs()] == [run.run_id]
    assert node_key()
