"""What a node may ask: who it is, which requests are let through, and with what inside.

Flower's own application checks a signature over a timestamp and that the node names its own id. It
does not check who a reply says it is from, whether a run exists, or whether the same headers came
before.
"""

import base64
import binascii
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from flwr.common.constant import (
    HEARTBEAT_MIN_INTERVAL,
    SUPERLINK_NODE_ID,
    SYSTEM_TIME_TOLERANCE,
    TIMESTAMP_HEADER,
)
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature
from google.protobuf.message import DecodeError

from fedpeft.errors import ProtocolError
from fedpeft.wire.protobuf import check_small_beside, field_path
from fedpeft.wire.records import MAX_BESIDE_TENSORS_BYTES, TENSORS
from fedpeft_server.fleet.link import Link
from fedpeft_server.fleet.mailbox import Mailbox
from fedpeft_server.fleet.refused import RefusedError

ACTIVATE = "/v1/fleet/activate-node"
DEACTIVATE = "/v1/fleet/deactivate-node"
HEARTBEAT = "/v1/fleet/send-node-heartbeat"
PULL = "/v1/fleet/pull-messages"
PUSH = "/v1/fleet/push-messages"
GET_RUN = "/v1/fleet/get-run"

Request = (
    ActivateNodeRequest
    | DeactivateNodeRequest
    | SendNodeHeartbeatRequest
    | PullMessagesRequest
    | PushMessagesRequest
    | GetRunRequest
)
REQUESTS: dict[str, type[Request]] = {
    ACTIVATE: ActivateNodeRequest,
    DEACTIVATE: DeactivateNodeRequest,
    HEARTBEAT: SendNodeHeartbeatRequest,
    PULL: PullMessagesRequest,
    PUSH: PushMessagesRequest,
    GET_RUN: GetRunRequest,
}
SESSION_HEADER = "fedpeft-session"

_TENSORS = field_path(PushMessagesRequest, *TENSORS)
_LONGEST_HEARTBEAT_S = 60.0
_LONGEST_SESSION = 64
_OLDEST_S = 60.0
"""Of a request's head."""


@dataclass(frozen=True, kw_only=True)
class Caller:
    """A registered node, known by its key.

    Attributes:
        node_id: As registered.
        public_key: In PEM.
        session: What its process calls itself; a new process has a new one.
    """

    node_id: int
    public_key: bytes
    session: str


@dataclass(frozen=True, kw_only=True)
class Admitted:
    """A request that may be answered.

    Attributes:
        request: As parsed.
        run_id: The run that it belongs to; None where it belongs to none.
    """

    request: Request
    run_id: int | None = None


class Gate:
    """Decides on every request of a node."""

    def __init__(self, link: Link, mailbox: Mailbox) -> None:
        self._link = link
        self._mailbox = mailbox
        self._sessions: dict[int, str] = {}
        self._seen: set[tuple[int, str]] = set()
        self._seen_in_order: deque[tuple[float, tuple[int, str]]] = deque()
        self._lock = threading.Lock()

    def authenticate(self, headers: Mapping[str, str]) -> Caller:
        """Finds out who asks, before the body of the request is read.

        Raises:
            RefusedError: If signature, time or key are not those of a registered node, or the same
                headers came before.
        """
        try:
            public_key = base64.b64decode(headers[FLEET_HTTP_PUBLIC_KEY_HEADER], validate=True)
            signature = base64.b64decode(headers[FLEET_HTTP_SIGNATURE_HEADER], validate=True)
            timestamp = headers[TIMESTAMP_HEADER]
            age_s = (now() - datetime.fromisoformat(timestamp)).total_seconds()
            key = bytes_to_public_key(public_key)
            if not verify_signature(key, timestamp.encode("ascii"), signature):
                raise RefusedError(401, "signature")
        except (KeyError, ValueError, TypeError, AttributeError, binascii.Error) as error:
            raise RefusedError(401, "unauthenticated") from error
        if not -SYSTEM_TIME_TOLERANCE < age_s < _OLDEST_S:
            raise RefusedError(401, "clock")
        node_id = self._link.node_of(public_key)
        if node_id is None:
            raise RefusedError(403, "not-enrolled")
        if not self._first_time(node_id, timestamp):
            raise RefusedError(401, "replayed")
        session = headers.get(SESSION_HEADER, "")[:_LONGEST_SESSION]
        return Caller(node_id=node_id, public_key=public_key, session=session)

    def admit(self, path: str, caller: Caller, body: bytes) -> Admitted:
        """Checks the body of a request, and prepares the link state for it.

        Raises:
            RefusedError: If it is malformed, names another node, or is not wanted.
        """
        try:
            if path == PUSH:
                check_small_beside(body, _TENSORS, MAX_BESIDE_TENSORS_BYTES)
            request = REQUESTS[path].FromString(body)
        except (DecodeError, ProtocolError) as error:
            raise RefusedError(400, "malformed") from error
        if isinstance(request, ActivateNodeRequest):
            self._activate(caller, request)
            return Admitted(request=request)
        self._check_session(caller)
        node = request if isinstance(request, DeactivateNodeRequest) else request.node
        if node.node_id != caller.node_id:
            raise RefusedError(403, "another-node")
        if isinstance(request, PushMessagesRequest):
            return self._reply(caller, request)
        if isinstance(request, GetRunRequest):
            if not self._mailbox.has_messages(request.run_id, caller.node_id):
                raise RefusedError(410, "no-such-run")
            return Admitted(request=request, run_id=request.run_id)
        if isinstance(request, SendNodeHeartbeatRequest):
            _check_heartbeat(request.heartbeat_interval)
        return Admitted(request=request)

    def _first_time(self, node_id: int, timestamp: str) -> bool:
        """Whether these headers are new; what is too old to be accepted is forgotten."""
        current = now().timestamp()
        with self._lock:
            while self._seen_in_order and self._seen_in_order[0][0] < current:
                self._seen.discard(self._seen_in_order.popleft()[1])
            if (node_id, timestamp) in self._seen:
                return False
            self._seen.add((node_id, timestamp))
            until = current + _OLDEST_S + SYSTEM_TIME_TOLERANCE
            self._seen_in_order.append((until, (node_id, timestamp)))
            return True

    def _activate(self, caller: Caller, request: ActivateNodeRequest) -> None:
        if request.public_key != caller.public_key:
            raise RefusedError(403, "another-node")
        _check_heartbeat(request.heartbeat_interval)
        with self._lock:
            self._sessions[caller.node_id] = caller.session
        self._mailbox.came_back(caller.node_id)

    def _check_session(self, caller: Caller) -> None:
        with self._lock:
            current = self._sessions.get(caller.node_id)
        if current is None:
            raise RefusedError(409, "not-active")
        if current != caller.session:
            raise RefusedError(409, "replaced")

    def _reply(self, caller: Caller, request: PushMessagesRequest) -> Admitted:
        if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
            raise RefusedError(400, "malformed")
        reply, tree = request.messages_list[0], request.message_object_trees[0]
        metadata = reply.metadata
        message = self._mailbox.delivered(caller.node_id, metadata.reply_to_message_id)
        if message is None:
            raise RefusedError(410, "no-such-message")
        if metadata.src_node_id != caller.node_id:
            raise RefusedError(403, "another-node")
        expected = (
            metadata.dst_node_id == SUPERLINK_NODE_ID
            and metadata.run_id == message.metadata.run_id
            and metadata.group_id == message.metadata.group_id
            and metadata.message_type == message.metadata.message_type
            and reply.HasField("content") != reply.HasField("error")
            and not request.clientapp_runtime_list
            and _is_digest(metadata.message_id)
            and tree.object_id == metadata.message_id
            and not tree.children
        )
        if not expected:
            raise RefusedError(400, "malformed")
        return Admitted(request=request, run_id=metadata.run_id)


def _check_heartbeat(interval_s: float) -> None:
    if not HEARTBEAT_MIN_INTERVAL <= interval_s <= _LONGEST_HEARTBEAT_S:
        raise RefusedError(400, "heartbeat")


def _is_digest(text: str) -> bool:
    return len(text) == 64 and set(text) <= set("0123456789abcdef")
