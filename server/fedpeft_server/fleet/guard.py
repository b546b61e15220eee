"""The public port: six paths, and what is asked there.

An ASGI application. A body is read only after its head was authenticated, never beyond its limit,
and never decompressed; what the gate does not let through reaches nothing of Flower's.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from starlette.types import Receive, Scope, Send

from fedpeft_server.fleet.answers import Answers
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
)
from fedpeft_server.fleet.mailbox import Mailbox
from fedpeft_server.fleet.refused import RefusedError
from fedpeft_server.fleet.traffic import Traffic

WAIT_HEADER = "fedpeft-wait-s"

_MOST_WITHOUT_TENSORS = 64 * 1024
_LONGEST_QUEUE_S = 60.0


class Guard:
    """The application that the public port serves."""

    def __init__(
        self,
        gate: Gate,
        answers: Answers,
        mailbox: Mailbox,
        doorbell: Doorbell,
        traffic: Traffic,
        config: FleetConfig,
    ) -> None:
        self._gate = gate
        self._answers = answers
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
                    await self._answer(exchange, caller, await exchange.read(limit))
        else:
            await self._answer(exchange, caller, await exchange.read(limit))

    async def _answer(self, exchange: Exchange, caller: Caller, body: bytes) -> None:
        """Answers a request that may be answered; a large one in another thread."""
        if exchange.path == PUSH:
            answer, run_id = await asyncio.to_thread(self._decide, exchange.path, caller, body)
        else:
            answer, run_id = self._decide(exchange.path, caller, body)
        if exchange.path == ACTIVATE:
            self._doorbell.enter(caller.node_id)
        elif exchange.path == DEACTIVATE:
            self._doorbell.leave(caller.node_id)
        self._traffic.received(run_id, exchange.head_size + len(body))
        self._traffic.sent(run_id, await exchange.answer(Answer(status=200, body=answer)))

    def _decide(self, path: str, caller: Caller, body: bytes) -> tuple[bytes, int | None]:
        admitted = self._gate.admit(path, caller, body)
        return self._answers.to(admitted.request), admitted.run_id

    async def _pull(self, exchange: Exchange, caller: Caller, body: bytes) -> None:
        """Answers a question for messages once there is one."""
        admitted = self._gate.admit(exchange.path, caller, body)
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
            answer = await asyncio.to_thread(self._answers.to, admitted.request)
            self._traffic.received(run_id, exchange.head_size + len(body))
            self._traffic.sent(run_id, await exchange.answer(Answer(status=200, body=answer)))

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
