"""The one door: every call passes here on its way to a service, and every refusal on its way out.

In this order a call must

1. come with a certificate that holds now: TLS has checked the chain; here come the revocation list
   and the dates, also on a connection that has been open for days,
2. not come from a client that was revoked,
3. be of a method that there is, and have one of its roles,
4. find room,
5. be of bearable size,

and, where it changes something,

6. be signed over its bytes, for this server, just now and never before,
7. not be one too many, and leave an entry in the audit log first.

The body is read after the roles were checked: gRPC takes any method as one that is sent a stream,
so nobody makes the server hold a message that it will refuse anyway.

Whatever goes wrong leaves as an entry of `fedpeft.wire.catalogue`; nothing else ends a call. What
gRPC refuses by itself, before there is a call to look at, is in docs/server.md.
"""

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc
import structlog

from fedpeft.errors import RemoteError
from fedpeft.wire.catalogue import BY_CODE, CODE, REQUEST_ID, Refused
from fedpeft_server.access.call import Call
from fedpeft_server.access.door import Door, parse, refusal_for, subject_of
from fedpeft_server.access.limits import Concurrency
from fedpeft_server.access.rules import RULES
from fedpeft_server.access.trail import OK, AuditTrail
from fedpeft_server.telemetry.metrics import CallMetrics

CANCELLED = "cancelled"
"""Outcome of a call whose caller did not wait for the answer."""
UNRECEIVED = "unreceived"
"""Outcome of a call without a message: gRPC refused it, or the caller gave it up half-way."""

_LOG = structlog.get_logger("calls")


@dataclass(frozen=True, kw_only=True)
class _Target:
    """What is called, with what beside it."""

    method: str
    metadata: Mapping[str, str | bytes]
    handler: "grpc.RpcMethodHandler[Any, Any] | None"


@dataclass(kw_only=True)
class _Account:
    """What is known of a call so far, for those who write it down."""

    method: str
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    started_s: float = field(default_factory=time.monotonic)
    caller: str = ""
    call: Call | None = None
    begun: bool = False

    @property
    def subject(self) -> str:
        return self.call.subject if self.call else ""


class _UnreceivedError(Exception):
    """A call without a message."""


class Guard(grpc.ServerInterceptor):
    """Stands between gRPC and every service."""

    def __init__(
        self, *, door: Door, concurrency: Concurrency, trail: AuditTrail, metrics: CallMetrics
    ) -> None:
        """Takes what lets calls in, and what writes them down."""
        self._door, self._concurrency = door, concurrency
        self._trail, self._metrics = trail, metrics

    def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any]":
        """Returns a handler that gets raw bytes, after the head of the call and before its body."""
        handler = continuation(handler_call_details)
        target = _Target(
            method=handler_call_details.method,
            metadata=dict(handler_call_details.invocation_metadata),
            handler=handler,
        )
        if handler is not None and handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(
                partial(self._stream, target), response_serializer=handler.response_serializer
            )
        return grpc.stream_unary_rpc_method_handler(
            partial(self._single, target),
            response_serializer=handler.response_serializer if handler else None,
        )

    def _single(
        self, target: _Target, requests: Iterator[bytes], context: grpc.ServicerContext
    ) -> Any:
        with self._admitted(target, requests, context) as (call, request):
            assert target.handler is not None
            assert target.handler.unary_unary is not None
            return target.handler.unary_unary(request, call)

    def _stream(
        self, target: _Target, requests: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[Any]:
        with self._admitted(target, requests, context) as (call, request):
            assert target.handler is not None
            behave: Any = target.handler.unary_stream or target.handler.stream_stream
            for response in behave(request, call):
                call.recheck()
                yield response

    @contextmanager
    def _admitted(
        self, target: _Target, requests: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[tuple[Any, Any]]:
        """Lets a call in, and writes down what became of it."""
        account = _Account(method=target.method if target.method in RULES else "unknown")
        outcome, refusal = Refused.INTERNAL.value.code, None
        try:
            with ExitStack() as stack:
                yield self._admit(target, requests, context, account, stack)
            outcome = OK
        except _UnreceivedError:
            # Where gRPC has ended the call already, nobody hears this.
            outcome, refusal = UNRECEIVED, Refused.INVALID.error("no message came that is taken")
        except (GeneratorExit, grpc.RpcError):
            outcome = CANCELLED
            raise
        except Exception as error:
            refusal = refusal_for(error)
            if refusal is None:
                refusal = Refused.INTERNAL.error(account.request_id)
                _LOG.exception("call failed", request_id=account.request_id, method=account.method)
            outcome = refusal.code
        finally:
            self._write_down(account, outcome)
        if refusal is not None:
            _end(context, refusal, account.request_id)

    def _admit(
        self,
        target: _Target,
        requests: Iterator[bytes],
        context: grpc.ServicerContext,
        account: _Account,
        stack: ExitStack,
    ) -> tuple[Call, Any]:
        """The steps of this module's description."""
        certificate, identity = self._door.identify(context)
        account.caller = identity.name
        visitor = self._door.allow(target.method, certificate, identity)
        handler = target.handler
        if handler is None:
            raise Refused.UNKNOWN_METHOD.error("this method")
        call = account.call = Call(
            method=target.method,
            request_id=account.request_id,
            caller=identity,
            gone=_gone(context),
            recheck=partial(self._door.recheck, visitor),
        )
        stack.enter_context(
            self._concurrency.taken(identity.name, stream=handler.response_streaming)
        )
        deserialize: Any = handler.request_deserializer
        if handler.request_streaming:
            return call, (parse(deserialize, raw) for raw in requests)
        raw = self._door.receive(requests)
        if raw is None:
            raise _UnreceivedError
        if visitor.rule.mutates:
            self._door.check_change(visitor, target.method, target.metadata, raw)
        request = parse(deserialize, raw)
        call.subject = subject_of(visitor.rule, request)
        if visitor.rule.mutates:
            self._trail.begun(identity.name, target.method, call.subject, account.request_id)
            account.begun = True
        return call, request

    def _write_down(self, account: _Account, outcome: str) -> None:
        seconds = time.monotonic() - account.started_s
        self._metrics.ended(account.method, outcome, seconds)
        quiet = outcome == OK and account.method.startswith("/grpc.")
        _LOG.log(
            logging.DEBUG if quiet else logging.INFO,
            "call",
            request_id=account.request_id,
            method=account.method,
            caller=account.caller,
            code=outcome,
            seconds=round(seconds, 4),
            **(account.call.details if account.call else {}),
        )
        known = (account.caller, account.method, account.subject, outcome, account.request_id)
        if account.begun:
            self._trail.ended(*known)
        elif outcome in BY_CODE or outcome == UNRECEIVED:
            self._trail.refused(*known)


def _gone(context: grpc.ServicerContext) -> threading.Event:
    """An event that is set when the call has ended, by whichever side."""
    gone = threading.Event()
    if not context.add_callback(gone.set):
        gone.set()
    return gone


def _end(context: grpc.ServicerContext, refusal: RemoteError, request_id: str) -> None:
    """The only place where a call ends otherwise than with its answer."""
    context.set_trailing_metadata(((CODE, refusal.code), (REQUEST_ID, request_id)))
    status = BY_CODE[refusal.code].value.status
    context.abort(grpc.StatusCode[status], str(refusal))
