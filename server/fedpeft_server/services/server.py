"""The server itself, and its audit log."""

from datetime import UTC, datetime

from fedpeft import __version__
from fedpeft.errors import VerificationError
from fedpeft.wire.catalogue import Refused
from fedpeft.wire.serde import OLDEST_PROTOCOL, PROTOCOL
from fedpeft.wire.v1 import server_pb2, server_pb2_grpc
from fedpeft_server.about import About
from fedpeft_server.access.call import Call
from fedpeft_server.services import fields, translate
from fedpeft_server.state import State

_LARGEST_PAGE = 1000


class ServerService(server_pb2_grpc.ServerServicer):
    """See protos/fedpeft/wire/v1/server.proto."""

    def __init__(self, state: State, about: About) -> None:
        """Takes the audit log's place, and what there is to say."""
        self._state, self._about = state, about

    def GetServer(self, request: server_pb2.GetServerRequest, call: Call) -> server_pb2.ServerInfo:
        """Returns what the server is, and who the caller is to it."""
        return server_pb2.ServerInfo(
            version=__version__,
            oldest_protocol=OLDEST_PROTOCOL,
            newest_protocol=PROTOCOL,
            time=translate.time(datetime.now(UTC)),
            fleet_address=self._about.fleet_address,
            bundle_digest=self._about.bundle_digest,
            caller=call.caller.name,
            caller_roles=sorted(call.caller.roles),
        )

    def ListAudit(
        self, request: server_pb2.ListAuditRequest, call: Call
    ) -> server_pb2.ListAuditResponse:
        """Returns a page of the audit log."""
        limit = fields.between("limit", request.limit, 1, _LARGEST_PAGE)
        try:
            found = self._state.audit(fields.position(request.after), limit)
        except VerificationError as error:
            raise Refused.DAMAGED.error(f": {error}") from error
        return server_pb2.ListAuditResponse(entries=[translate.audit_entry(e) for e in found])
