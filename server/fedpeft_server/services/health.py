"""grpc.health.v1: whether the server can do its work, which it cannot without its database."""

from collections.abc import Callable, Iterator

from grpc_health.v1 import health_pb2, health_pb2_grpc

from fedpeft.wire.catalogue import Refused
from fedpeft_server.access.call import Call

_TICK_S = 1.0


class HealthService(health_pb2_grpc.HealthServicer):
    """Answers for the whole server ("") and for each of its services, which stand or fall together.

    Not the class that grpcio-health-checking brings: it ends calls by itself, and remembers a
    status that somebody must keep up to date.
    """

    def __init__(self, services: frozenset[str], is_ready: Callable[[], bool]) -> None:
        """Takes the full names of the services, and what says whether the server is ready."""
        self._services = services | {""}
        self._is_ready = is_ready

    def Check(
        self, request: health_pb2.HealthCheckRequest, call: Call
    ) -> health_pb2.HealthCheckResponse:
        """Returns how a service is now."""
        if request.service not in self._services:
            raise Refused.NO_SUCH_SERVICE.error(repr(request.service[:80]))
        return self._response()

    def Watch(
        self, request: health_pb2.HealthCheckRequest, call: Call
    ) -> Iterator[health_pb2.HealthCheckResponse]:
        """Yields how a service is, and again whenever that changes."""
        if request.service not in self._services:
            unknown = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            yield health_pb2.HealthCheckResponse(status=unknown)
            return
        last = None
        while call.is_active():
            call.recheck()
            response = self._response()
            if response != last:
                last = response
                yield response
            call.pause(_TICK_S)

    def _response(self) -> health_pb2.HealthCheckResponse:
        ready = self._is_ready()
        kinds = health_pb2.HealthCheckResponse
        return kinds(status=kinds.SERVING if ready else kinds.NOT_SERVING)
