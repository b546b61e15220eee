"""A connection in which every request is signed over the bytes that are sent."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import grpc

from fedpeft.identity.credentials import Credentials
from fedpeft.remote.address import ServerAddress
from fedpeft.wire.signing import RequestSignature

_OPTIONS = (
    # A server that is gone without a word is noticed within a minute and a half.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),  # no bound: a watched run may be quiet for hours
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.max_receive_message_length", 64 * 2**20),
)


def open_channel(address: ServerAddress, credentials: Credentials) -> grpc.Channel:
    """Opens a channel in mutual TLS; it connects at the first call."""
    tls = grpc.ssl_channel_credentials(
        root_certificates=credentials.authority_pem,
        private_key=credentials.key_pem,
        certificate_chain=credentials.certificate_pem,
    )
    return grpc.secure_channel(str(address), tls, options=_OPTIONS)


class SigningChannel:
    """What generated stubs take for a channel: below them, so that what is signed is what is sent.

    An interceptor sees messages before they are bytes, and protobuf may write one message in
    several ways.
    """

    def __init__(self, channel: grpc.Channel, credentials: Credentials, audience: str) -> None:
        """Takes the channel and who signs.

        Args:
            channel: Where the signed requests go.
            credentials: Of the caller.
            audience: Host that TLS checks the server's certificate for.
        """
        self._channel = channel
        self._key = credentials.key
        self._audience = audience

    def unary_unary(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes],
        response_deserializer: Callable[[bytes], Any],
        **_: object,
    ) -> Callable[..., Any]:
        """Returns what makes one call."""
        send: Callable[..., Any] = self._channel.unary_unary(method, None, response_deserializer)
        return self._signing(method, request_serializer, send)

    def unary_stream(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes],
        response_deserializer: Callable[[bytes], Any],
        **_: object,
    ) -> Callable[..., Any]:
        """Returns what makes one call that is answered by a stream."""
        send: Callable[..., Any] = self._channel.unary_stream(method, None, response_deserializer)
        return self._signing(method, request_serializer, send)

    def _signing(
        self, method: str, serialize: Callable[[Any], bytes], send: Callable[..., Any]
    ) -> Callable[..., Any]:
        def call(request: Any, timeout: float | None = None) -> Any:
            body = serialize(request)
            signature = RequestSignature.make(
                self._key,
                method=method,
                audience=self._audience,
                request=body,
                now=datetime.now(UTC),
            )
            return send(body, timeout=timeout, metadata=signature.to_metadata())

        return call
