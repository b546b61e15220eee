"""Clients: invited, enrolled, listed and revoked."""

from fedpeft.wire.v1 import clients_pb2, clients_pb2_grpc
from fedpeft_server.about import About
from fedpeft_server.access.call import Call
from fedpeft_server.enrolment import LONGEST_HOURS, Enrolment
from fedpeft_server.ports import ClientNodes
from fedpeft_server.services import fields, translate
from fedpeft_server.state import State


class ClientsService(clients_pb2_grpc.ClientsServicer):
    """See protos/fedpeft/wire/v1/clients.proto."""

    def __init__(
        self, state: State, enrolment: Enrolment, nodes: ClientNodes, about: About
    ) -> None:
        """Takes where clients are recorded, how they come and go, and who is connected."""
        self._state, self._enrolment, self._nodes = state, enrolment, nodes
        self._about = about

    def InviteClient(
        self, request: clients_pb2.InviteClientRequest, call: Call
    ) -> clients_pb2.Invitation:
        """Makes a token for a client."""
        name = fields.client_id(request.client_id)
        hours = fields.between("valid_hours", request.valid_hours, 1, LONGEST_HOURS)
        made = self._enrolment.invite(name, hours, call.caller.name)
        return clients_pb2.Invitation(token=made.token, expires_at=translate.time(made.expires_at))

    def EnrolClient(
        self, request: clients_pb2.EnrolClientRequest, call: Call
    ) -> clients_pb2.Enrolment:
        """Makes the caller a client, under the name in its certificate."""
        name = fields.client_id(call.caller.name)
        call.about(name, client_id=name)
        self._enrolment.enrol(
            call.caller,
            token=fields.text("token", request.token),
            node_public_key=request.node_public_key,
            protocol=request.protocol,
            version=fields.text("version", request.version, required=True),
        )
        return clients_pb2.Enrolment(
            client_id=name,
            fleet_address=self._about.fleet_address,
            server_certificate=self._about.certificate_der(),
            bundle_digest=self._about.bundle_digest,
        )

    def ListClients(
        self, request: clients_pb2.ListClientsRequest, call: Call
    ) -> clients_pb2.ListClientsResponse:
        """Returns the clients that the caller may see."""
        online = self._nodes.online()
        return clients_pb2.ListClientsResponse(
            clients=[
                translate.client(client, online=client.client_id in online)
                for client in self._state.clients()
                if call.may_see(client.client_id)
            ]
        )

    def RevokeClient(
        self, request: clients_pb2.RevokeClientRequest, call: Call
    ) -> clients_pb2.Client:
        """Takes a client out."""
        name = fields.client_id(request.client_id)
        call.about(name, client_id=name)
        reason = fields.text("reason", request.reason, required=True)
        return translate.client(self._enrolment.revoke(name, reason), online=False)
