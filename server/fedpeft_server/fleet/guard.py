"""Stands before Flower's app on the public port: what is not let through here, Flower never sees.

An ASGI application of six paths. A body is read only after its head was authenticated, never beyond
its limit, and never decompressed; of the head, Flower is handed what it needs and nothing else.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedpeft_server.fleet.config import FleetConfig
from fedpeft_server.fleet.doorbell import Doorbell
from fedpeft_server.fleet.exchange import PROTOBUF, Answer, Exchange, HungUpError
from fedpeft_server.fleet.gate import (
    ACTIVATE,
    DEACTIVATE,
    PULL,
    PUSH,
    REQUESTS,
    Caller,
    Gate,
    RefusedError,
)
from fedpeft_server.fleet.mailbox import Mailbox
from fedpeft_server.fleet.traffic import Traffic

WAIT_HEADER = "fedpeft-wait-s"

_HANDED_ON = ("content-type", "flwr-public-key", "flwr-signature", "flwr-timestamp")
_MOST_WITHOUT_TENSORS = 64 * 1024
_LONGEST_QUEUE_S = 60.0
_PASSED_ON = frozenset({400, 401, 403, 404, 409})


class Guard:
    """The application that the public port serves."""

    def __init__(
        self,
        app: ASGIApp,
        gate: Gate,
        mailbox: Mailbox,
        doorbell: Doorbell,
        traffic: Traffic,
        config: FleetConfig,
    ) -> None:
        self._app = app
        self._gate = gate
        self._mailbox = mailbox
        self._doorbell = doorbell
        self._traffic = traffic
        self._config = config
        self._transfers = asyncio.Semaphore(config.max_transfers)
        self._pushing: set[int] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            return
        exchange = Exchange(scope, receive, send, self._config.min_bytes_per_s)
        try:
            try:
                await self._serve(exchange)
            except RefusedError as refused:
                await exchange.answer(Answer(status=refused.status, body=refused.code.encode()))
        except HungUpError:
            pass

    async def _serve(self, exchange: Exchange) -> None:
        path = exchange.path
        limit = self._config.max_message_bytes if path == PUSH else _MOST_WITHOUT_TENSORS
        _check_head(exchange, limit)
        caller = self._gate.authenticate(exchange.headers)
        if path == PULL:
            await self._pull(exchange, caller, await exchange.read(limit))
        elif path == PUSH:
            with self._only_push_of(caller.node_id):
                async with self._transfer():
                    await self._pass(exchange, caller, await exchange.read(limit))
        else:
            await self._pass(exchange, caller, await exchange.read(limit))

    async def _pass(self, exchange: Exchange, caller: Caller, body: bytes) -> None:
        """Lets a request through to Flower."""
        admitted = await asyncio.to_thread(self._gate.admit, exchange.path, caller, body)
        if exchange.path in (ACTIVATE, DEACTIVATE):
            self._doorbell.dismiss(caller.node_id)
        self._traffic.received(admitted.run_id, exchange.head_size + len(body))
        answer = await self._flower(exchange, body)
        self._gate.settle(admitted, answer.body)
        self._traffic.sent(admitted.run_id, await exchange.answer(answer))

    async def _pull(self, exchange: Exchange, caller: Caller, body: bytes) -> None:
        """Lets a question for messages through to Flower once there is one."""
        self._gate.admit(exchange.path, caller, body)
        gone = asyncio.ensure_future(exchange.hung_up())
        try:
            there_is = await self._doorbell.wait(
                caller.node_id,
                lambda: self._mailbox.waiting(caller.node_id) is not None,
                gone,
                self._wait_s(exchange),
            )
        finally:
            gone.cancel()
        if not there_is:  # an empty message of protobuf is no bytes: no messages
            await exchange.answer(Answer(status=200, body=b""))
            return
        async with self._transfer():
            message = self._mailbox.waiting(caller.node_id)
            run_id = None if message is None else message.metadata.run_id
            answer = await self._flower(exchange, body)
            self._traffic.received(run_id, exchange.head_size + len(body))
            self._traffic.sent(run_id, await exchange.answer(answer))

    async def _flower(self, exchange: Exchange, body: bytes) -> Answer:
        """Asks Flower's app.

        Raises:
            RefusedError: If it refuses; what it says about it stays here.
        """
        headers = [(name.encode(), exchange.headers[name].encode()) for name in _HANDED_ON]
        headers.append((b"content-length", str(len(body)).encode()))
        kept = ("type", "asgi", "http_version", "method", "scheme", "client", "server")
        scope: Scope = {name: exchange.scope[name] for name in kept} | {
            "path": exchange.path,
            "raw_path": exchange.path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": headers,
            "state": {},
        }
        requests: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        answers: list[Message] = []

        async def receive() -> Message:
            if requests:
                return requests.pop()
            nothing: asyncio.Future[Message] = asyncio.Future()
            return await nothing  # a peer that neither sends nor hangs up

        async def send(message: Message) -> None:
            answers.append(message)

        await self._app(scope, receive, send)
        status = answers[0]["status"]
        if status != 200:
            raise RefusedError(status if status in _PASSED_ON else 500, "refused")
        return Answer(status=status, body=b"".join(part.get("body", b"") for part in answers[1:]))

    @asynccontextmanager
    async def _transfer(self) -> AsyncIterator[None]:
        """Holds one of the places for messages in memory."""
        try:
            async with asyncio.timeout(_LONGEST_QUEUE_S):
                await self._transfers.acquire()
        except TimeoutError as error:
            raise RefusedError(503, "busy") from error
        try:
            yield
        finally:
            self._transfers.release()

    @contextmanager
    def _only_push_of(self, node_id: int) -> Iterator[None]:
        """Lets no node hold more than one of the places with what it sends."""
        if node_id in self._pushing:
            raise RefusedError(429, "busy")
        self._pushing.add(node_id)
        try:
            yield
        finally:
            self._pushing.remove(node_id)

    def _wait_s(self, exchange: Exchange) -> float:
        try:
            asked = float(exchange.headers.get(WAIT_HEADER, "0"))
        except ValueError:
            return 0.0
        return min(asked, self._config.max_wait_s) if asked > 0 else 0.0


def _check_head(exchange: Exchange, limit: int) -> None:
    headers = exchange.headers
    if exchange.path not in REQUESTS:
        raise RefusedError(404, "not-found")
    if exchange.scope["method"] != "POST":
        raise RefusedError(405, "method")
    if len(headers) != len(exchange.scope["headers"]):  # Flower might read the other one
        raise RefusedError(400, "malformed")
    if headers.get("content-type") != PROTOBUF:
        raise RefusedError(415, "content-type")
    if headers.get("content-encoding", "identity") != "identity":
        raise RefusedError(415, "content-encoding")
    if int(headers.get("content-length", "0")) > limit:  # a number: h11 saw to that
        raise RefusedError(413, "too-large")
