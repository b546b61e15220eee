"""Calls as bytes, below the SDK: what an attacker with a certificate can send."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
from google.protobuf.message import Message

from fedpeft.identity.credentials import Credentials
from fedpeft.wire.catalogue import BY_CODE, CODE, REQUEST_ID
from fedpeft.wire.signing import RequestSignature
from tests.server.control_rig import Rig

Metadata = tuple[tuple[str, str | bytes], ...]
WIRE = "/fedpeft.wire.v1."


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a call ended: "ok" with its answers, or a code with a message."""

    code: str
    message: str
    answers: tuple[bytes, ...]
    request_id: str


@contextmanager
def channel(rig: Rig, name: str) -> Iterator[grpc.Channel]:
    """A connection of its own, in TLS as one holder."""
    held = rig.holders.of(name)
    credentials = grpc.ssl_channel_credentials(
        held.authority_pem, held.key_pem, held.certificate_pem
    )
    # Otherwise gRPC would share one connection between channels of equal settings.
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
    with grpc.secure_channel(rig.address, credentials, options) as opened:
        yield opened


def send(
    opened: grpc.Channel, path: str, body: bytes, metadata: Metadata = (), **settings: Any
) -> Outcome:
    """Calls a method, whatever it answers with."""
    return finished(opened.unary_stream(path)(body, metadata=metadata, timeout=20, **settings))


def finished(call: Any) -> Outcome:
    """How a call ends; a refusal must be one of the catalogue, with its status and its words."""
    try:
        answers = tuple(call)
    except grpc.RpcError:
        trailing = dict(call.trailing_metadata())
        code, message = str(trailing[CODE]), call.details() or ""
        problem = BY_CODE[code].value
        assert call.code() is grpc.StatusCode[problem.status]
        template = re.escape(problem.message).replace(r"\{detail\}", ".*")
        assert re.fullmatch(template, message), message
        return Outcome(code=code, message=message, answers=(), request_id=str(trailing[REQUEST_ID]))
    return Outcome(code="ok", message="", answers=answers, request_id="")


def signature(
    held: Credentials,
    path: str,
    body: bytes,
    *,
    audience: str = "localhost",
    age_s: float = 0.0,
) -> Metadata:
    """What goes beside a signed request, as old as one likes."""
    moment = datetime.now(UTC) - timedelta(seconds=age_s)
    made = RequestSignature.make(held.key, method=path, audience=audience, request=body, now=moment)
    return made.to_metadata()


def send_signed(rig: Rig, name: str, method: str, request: Message) -> Outcome:
    """Calls a method as the SDK does."""
    path, body = WIRE + method, request.SerializeToString()
    with channel(rig, name) as opened:
        return send(opened, path, body, signature(rig.holders.of(name), path, body))
