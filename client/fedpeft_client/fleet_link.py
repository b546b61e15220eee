"""One node's requests to the fleet: Flower's client, kept on a short lead.

The only module of the client that imports what Flower does not publish. The server is not trusted
with the node's machine: it cannot redirect requests, send without end, or send what unpacks itself.
"""

import secrets
import ssl
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Error, Message
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fedpeft.errors import (
    ConfigError,
    EnrolmentError,
    IdentityError,
    ProtocolError,
    ReplacedError,
    TransportError,
)
from fedpeft.wire.protobuf import check_small_beside, field_path
from fedpeft.wire.records import MAX_BESIDE_TENSORS_BYTES, TENSORS

_CHUNK = 64 * 1024  # httpcore copies what is left of a write after each TLS record of 16 KiB
_CONNECT_S, _TRANSFER_S = 10.0, 60.0
_KEEP_S = 15.0  # an idle connection: longer than from heartbeat to heartbeat, less than the server
_LONGEST_CODE = 32
_TRY_AGAIN = (
    httpx.codes.UNAUTHORIZED,  # the signature is a new one the next time
    httpx.codes.REQUEST_TIMEOUT,
    httpx.codes.TOO_MANY_REQUESTS,
)
_TENSORS = field_path(PullMessagesResponse, *TENSORS)

Asked = TypeVar("Asked")
Answered = TypeVar("Answered")


class NotActiveError(TransportError):
    """The server does not know of this connection: it restarted."""


class FleetLink:
    """Sends requests, each once. Safe to use from any thread."""

    def __init__(
        self,
        address: str,
        *,
        authority: bytes,
        key: ec.EllipticCurvePrivateKey,
        heartbeat_s: float,
        wait_s: float,
        max_message_bytes: int,
    ) -> None:
        """See `FleetNode`.

        Raises:
            ConfigError: If `address` is none.
            IdentityError: If `authority` is no certificate.
        """
        context = _trusting(authority)
        self._public_key = public_key_to_bytes(key.public_key())
        self._heartbeat_s = heartbeat_s
        self._node = Node()
        transport = _Transport(context, max_message_bytes)
        timeout = httpx.Timeout(_TRANSFER_S + wait_s, connect=_CONNECT_S)
        self._client = _Client(
            _url(address),
            context,
            httpx.Client(transport=transport, timeout=timeout),
            [NodeAuthHttpInterceptor(key, key.public_key()), _Manners(wait_s)],
        )

    @property
    def node_id(self) -> int:
        """This node's id, once it was activated."""
        return self._node.node_id

    def activate(self) -> None:
        """Tells the server that this process is the node now."""
        request = ActivateNodeRequest(
            public_key=self._public_key, heartbeat_interval=self._heartbeat_s
        )
        self._node = Node(node_id=self._ask(self._client.ActivateNode, request).node_id)

    def deactivate(self) -> None:
        """Tells the server that the node leaves; replies are still taken."""
        self._ask(self._client.DeactivateNode, DeactivateNodeRequest(node_id=self.node_id))

    def heartbeat(self) -> None:
        """Tells the server that the node is there."""
        request = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=self._heartbeat_s)
        if not self._ask(self._client.SendNodeHeartbeat, request).success:
            raise NotActiveError("the server does not know this node")

    def pull(self) -> Message | None:
        """Waits for a message.

        Raises:
            ProtocolError: If the message is not for this node, or cannot be read.
        """
        answer = self._ask(self._client.PullMessages, PullMessagesRequest(node=self._node))
        if not answer.messages_list:
            return None
        try:
            message = message_from_proto(answer.messages_list[0])
        except (ValueError, TypeError, KeyError) as error:
            raise ProtocolError(
                f"the server sent a message that cannot be read: {error}"
            ) from error
        metadata = message.metadata
        if (metadata.src_node_id, metadata.dst_node_id) != (SUPERLINK_NODE_ID, self.node_id):
            raise ProtocolError("the server sent a message that is another node's")
        if not message.has_content():
            raise ProtocolError("the server sent a message without content")
        return message

    def bundle_hash(self, run_id: int) -> str | None:
        """Returns the hash of a run's app bundle; None if the run is closed."""
        try:
            answer = self._ask(self._client.GetRun, GetRunRequest(node=self._node, run_id=run_id))
        except _GoneError:
            return None
        return answer.run.fab_hash

    def push(self, reply: Message) -> bool:
        """Sends a reply, with its content in it; returns whether the server took it."""
        if not reply.metadata.message_id:
            reply.metadata.__dict__["_message_id"] = secrets.token_hex(32)
        request = PushMessagesRequest(
            node=self._node,
            messages_list=[message_to_proto(reply)],
            message_object_trees=[ObjectTree(object_id=reply.metadata.message_id)],
        )
        try:
            self._ask(self._client.PushMessages, request)
        except _GoneError:
            return False
        return True

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def _ask(self, method: Callable[[Asked], Answered], request: Asked) -> Answered:
        try:
            return method(request)
        except httpx.HTTPStatusError as error:
            raise _refusal(error.response) from error
        except httpx.TransportError as error:
            raise _failure(error) from error
        except ValueError as error:
            raise ProtocolError(f"the server's answer cannot be read: {error}") from error


def failed(name: str) -> Error:
    """Returns the error that stands for a handler's exception of this class."""
    return Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=name)


class _GoneError(TransportError):
    """What a request is about is not there any more."""


class _Client(FleetHttpClient):
    """Flower's client over an HTTP client of ours."""

    def __init__(
        self, url: str, context: ssl.SSLContext, client: httpx.Client, interceptors: list[Any]
    ) -> None:
        super().__init__(url, interceptors=interceptors, verify=context)
        self._client.close()
        self._client = client


class _Manners:
    """Names this process and how long it may wait, and looks at an answer before it is parsed."""

    def __init__(self, wait_s: float) -> None:
        self._session = secrets.token_hex(16)
        self._wait_s = wait_s

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        context.request.headers["fedpeft-session"] = self._session
        if not isinstance(context.message, PullMessagesRequest):
            return call_next(context)
        context.request.headers["fedpeft-wait-s"] = f"{self._wait_s:g}"
        response = call_next(context)
        if response.is_success:
            check_small_beside(response.content, _TENSORS, MAX_BESIDE_TENSORS_BYTES)
        return response


class _Transport(httpx.BaseTransport):
    """Sends bodies in pieces and takes answers up to a limit, as they are."""

    def __init__(self, context: ssl.SSLContext, limit: int) -> None:
        limits = httpx.Limits(keepalive_expiry=_KEEP_S)
        self._inner = httpx.HTTPTransport(verify=context, limits=limits)
        self._limit = limit

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.headers["accept-encoding"] = "identity"
        request.stream = _Pieces(request.read())
        response = self._inner.handle_request(request)
        assert isinstance(response.stream, httpx.SyncByteStream)
        if "content-encoding" in response.headers:
            response.stream.close()
            raise ProtocolError("the server sent a compressed answer")
        if int(response.headers.get("content-length", "0")) > self._limit:
            response.stream.close()
            raise _too_much()
        return httpx.Response(
            response.status_code,
            headers=response.headers,
            stream=_Limited(response.stream, self._limit),
            extensions=response.extensions,
        )

    def close(self) -> None:
        self._inner.close()


class _Pieces(httpx.SyncByteStream):
    def __init__(self, body: bytes) -> None:
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        for start in range(0, len(self._body), _CHUNK):
            yield self._body[start : start + _CHUNK]


class _Limited(httpx.SyncByteStream):
    def __init__(self, stream: httpx.SyncByteStream, limit: int) -> None:
        self._stream = stream
        self._left = limit

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._stream:
            self._left -= len(piece)
            if self._left < 0:
                raise _too_much()
            yield piece

    def close(self) -> None:
        self._stream.close()


def _too_much() -> ProtocolError:
    return ProtocolError("the server sent more than this node takes at once")


def _trusting(authority: bytes) -> ssl.SSLContext:
    """TLS with servers of this authority, and no other: not even those that the machine trusts."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(cadata=authority.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise IdentityError(f"expected an authority's certificate in PEM: {error}") from error
    return context


def _url(address: str) -> str:
    try:
        url = httpx.URL(f"https://{address}")
    except httpx.InvalidURL as error:
        raise ConfigError(f'expected "host:port", got {address!r}: {error}') from error
    if not url.host or url.port is None or url.raw_path != b"/" or url.userinfo:
        raise ConfigError(f'expected "host:port", got {address!r}')
    return str(url)


def _refusal(response: httpx.Response) -> Exception:
    """What an answer other than 200 means."""
    status, code = response.status_code, response.text[:_LONGEST_CODE]
    if code == "not-enrolled":
        return EnrolmentError(
            "the server does not know this node's key, or no longer; enrol it, or ask the operator"
        )
    if code == "replaced":
        return ReplacedError("another process connected with this node's key; stop one of them")
    if code == "not-active":
        return NotActiveError("the server does not know of this connection")
    if status == httpx.codes.GONE:
        return _GoneError(code)
    if code == "clock":
        return TransportError(
            "this machine's clock is ahead of the server's, or more than a minute behind; set it"
        )
    if status == httpx.codes.REQUEST_ENTITY_TOO_LARGE:
        return ProtocolError("the server takes no message of this size")
    if status >= 500 or status in _TRY_AGAIN:
        return TransportError(f"the server answered {status} {code!r}")
    return ProtocolError(f"the server answered {status} {code!r}")


def _failure(error: httpx.TransportError) -> Exception:
    """What it means that there was no answer."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return IdentityError(
                f"the server's certificate is not the authority's for this address: "
                f"{cause.verify_message}"
            )
        cause = cause.__cause__ or cause.__context__
    return TransportError(f"the server cannot be reached: {error or type(error).__name__}")
