"""What a node is answered, from Flower's link state: the six requests of a SuperNode.

Flower's own application answers the same requests behind a web framework, checks the signature a
second time, writes every question as JSON for a log that is off, and looks at the messages of all
nodes: several times the work (docs/LOG.md).
"""

from collections.abc import Callable
from typing import Any

from flwr.common.constant import Status
from flwr.common.serde import message_from_proto, message_to_proto, run_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    DeactivateNodeRequest,
    DeactivateNodeResponse,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.proto.run_pb2 import GetRunRequest, GetRunResponse
from google.protobuf.message import Message as Protobuf

from fedpeft_server.fleet.link import Link
from fedpeft_server.fleet.mailbox import Mailbox
from fedpeft_server.fleet.refused import RefusedError


class Answers:
    """Answers what the gate let through. Safe to use from any thread."""

    def __init__(self, link: Link, mailbox: Mailbox) -> None:
        self._link = link
        self._mailbox = mailbox
        self._answer: dict[type[Protobuf], Callable[[Any], Protobuf]] = {
            ActivateNodeRequest: self._activate,
            DeactivateNodeRequest: self._deactivate,
            SendNodeHeartbeatRequest: self._heartbeat,
            PullMessagesRequest: self._pull,
            PushMessagesRequest: self._push,
            GetRunRequest: self._get_run,
        }

    def to(self, request: Protobuf) -> bytes:
        """Answers a request.

        Raises:
            RefusedError: If what it is about is not there (any more).
        """
        return self._answer[type(request)](request).SerializeToString()

    def _activate(self, request: ActivateNodeRequest) -> ActivateNodeResponse:
        node_id = self._link.node_of(request.public_key)
        if node_id is None:
            raise RefusedError(403, "not-enrolled")
        self._link.state.activate_node(node_id, request.heartbeat_interval)
        return ActivateNodeResponse(node_id=node_id)

    def _deactivate(self, request: DeactivateNodeRequest) -> DeactivateNodeResponse:
        self._link.state.deactivate_node(request.node_id)
        return DeactivateNodeResponse()

    def _heartbeat(self, request: SendNodeHeartbeatRequest) -> SendNodeHeartbeatResponse:
        there = self._link.state.acknowledge_node_heartbeat(
            request.node.node_id, request.heartbeat_interval
        )
        return SendNodeHeartbeatResponse(success=there)

    def _pull(self, request: PullMessagesRequest) -> PullMessagesResponse:
        message = self._mailbox.take(request.node.node_id)
        return PullMessagesResponse(
            messages_list=[] if message is None else [message_to_proto(message)]
        )

    def _push(self, request: PushMessagesRequest) -> PushMessagesResponse:
        try:
            reply = message_from_proto(request.messages_list[0])
        except (ValueError, TypeError, KeyError) as error:
            raise RefusedError(400, "malformed") from error
        if not self._mailbox.keep(reply):
            raise RefusedError(410, "not-taken")
        return PushMessagesResponse(results={reply.metadata.message_id: 0})

    def _get_run(self, request: GetRunRequest) -> GetRunResponse:
        state = self._link.state
        for run in state.get_run_info(run_ids=[request.run_id], statuses=[Status.RUNNING]):
            return GetRunResponse(run=run_to_proto(run))
        raise RefusedError(410, "no-such-run")
