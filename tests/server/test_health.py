"""Health and reflection, as other people's tools ask for them."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from fedpeft.errors import UnavailableError
from tests.server.control_rig import Rig, listening
from tests.server.raw_calls import channel

OURS = {
    f"fedpeft.wire.v1.{name}"
    for name in ("Runs", "Clients", "Budgets", "Adapters", "Removals", "Server")
}
OTHERS = {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with listening(tmp_path) as opened:
        yield opened


def test_each_service_and_all_of_them(rig: Rig) -> None:
    with channel(rig, "reader") as opened:
        stub = health_pb2_grpc.HealthStub(opened)
        for service in ("", *OURS):
            answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=20)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as refused:
            stub.Check(health_pb2.HealthCheckRequest(service="x"), timeout=20)
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        [unknown] = stub.Watch(health_pb2.HealthCheckRequest(service="x"), timeout=20)
        assert unknown.status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


def test_a_watcher_is_told_of_changes_alone(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def down() -> None:
        raise UnavailableError("down")

    with channel(rig, "reader") as opened:
        stream = health_pb2_grpc.HealthStub(opened).Watch(
            health_pb2.HealthCheckRequest(), timeout=60
        )
        assert next(stream).status == health_pb2.HealthCheckResponse.SERVING
        with monkeypatch.context() as patch:
            patch.setattr(rig.state, "audit_head", down)
            assert next(stream).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert next(stream).status == health_pb2.HealthCheckResponse.SERVING
        stream.cancel()


def test_reflection_describes_every_service(rig: Rig) -> None:
    request = reflection_pb2.ServerReflectionRequest
    asked = [request(list_services=""), request(file_containing_symbol="fedpeft.wire.v1.Runs")]
    with channel(rig, "reader") as opened:
        stub = reflection_pb2_grpc.ServerReflectionStub(opened)
        services, file = stub.ServerReflectionInfo(iter(asked), timeout=20)
    assert {found.name for found in services.list_services_response.service} == OURS | OTHERS
    described = FileDescriptorProto.FromString(
        file.file_descriptor_response.file_descriptor_proto[0]
    )
    assert [method.name for method in described.service[0].method] == [
        "SubmitRun",
        "ListRuns",
        "GetRun",
        "WatchRun",
        "StopRun",
        "ResumeRun",
    ]


def test_reflection_takes_no_nonsense(rig: Rig) -> None:
    path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    with channel(rig, "reader") as opened:
        call = opened.stream_stream(path)(iter([b"\xff\xff"]), timeout=20)
        with pytest.raises(grpc.RpcError):
            next(call)
        assert call.code() is grpc.StatusCode.INVALID_ARGUMENT
