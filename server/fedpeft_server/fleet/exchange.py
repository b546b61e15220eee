"""One request on the public port and its answer, within limits of size and time."""

import asyncio
from dataclasses import dataclass

from starlette.types import Message, Receive, Scope, Send

from fedpeft_server.fleet.refused import RefusedError

PROTOBUF = "application/protobuf"
LONGEST_READ_S = 180.0
"""For a body, however large; a request that took longer would be refused as too old."""

_GRACE_S = 10.0
_CHUNK = 64 * 1024  # asyncio copies what is left of a write after each TLS record of 16 KiB


class HungUpError(Exception):
    """Nobody is there to be answered."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a peer is told.

    Attributes:
        status: Of HTTP.
        body: For 200 a message of protobuf, else one word.
    """

    status: int
    body: bytes


class Exchange:
    """A request and its answer.

    Attributes:
        path: As asked for.
        headers: By their names in lower case.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, min_bytes_per_s: int) -> None:
        """Reads the head."""
        self.scope = scope
        self.path: str = scope["path"]
        pairs = [
            (name.decode("latin-1"), text.decode("latin-1")) for name, text in scope["headers"]
        ]
        self.headers = dict(pairs)
        self._receive = receive
        self._send = send
        self._min_bytes_per_s = min_bytes_per_s

    @property
    def head_size(self) -> int:
        """Bytes of the request before its body."""
        line = len(f"POST {self.path} HTTP/1.1\r\n\r\n")
        return line + sum(len(name) + len(text) + 4 for name, text in self.headers.items())

    async def read(self, limit: int) -> bytes:
        """Reads the body.

        Raises:
            RefusedError: If it is longer than `limit`, or comes too slowly.
            HungUpError: If the peer hangs up before its end.
        """
        loop = asyncio.get_running_loop()
        started, size, chunks = loop.time(), 0, []
        while True:
            until = started + min(self._time_for(size), LONGEST_READ_S)
            try:
                async with asyncio.timeout_at(until):
                    message = await self._receive()
            except TimeoutError as error:
                raise RefusedError(408, "slow") from error
            if message["type"] != "http.request":
                raise HungUpError
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > limit:
                raise RefusedError(413, "too-large")
            chunks.append(chunk)
            if not message.get("more_body", False):
                return b"".join(chunks)

    async def hung_up(self) -> None:
        """Waits until the peer hangs up; to be called after the body was read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def answer(self, answer: Answer) -> int:
        """Sends the answer; returns the bytes sent.

        Raises:
            HungUpError: If the peer takes it too slowly.
        """
        kind = PROTOBUF if answer.status == 200 else "text/plain"
        head = [("content-type", kind), ("content-length", str(len(answer.body)))]
        if answer.status != 200:  # what is left of the request is not worth reading
            head.append(("connection", "close"))
        encoded = [(name.encode(), text.encode()) for name, text in head]
        await self._send(
            {"type": "http.response.start", "status": answer.status, "headers": encoded}
        )
        until = asyncio.get_running_loop().time() + self._time_for(len(answer.body))
        try:
            async with asyncio.timeout_at(until):
                for start in range(0, max(len(answer.body), 1), _CHUNK):
                    await self._send(_piece(answer.body, start, start + _CHUNK))
        except TimeoutError as error:
            raise HungUpError from error
        line = len(f"HTTP/1.1 {answer.status} OK\r\n\r\n")
        return line + sum(len(name) + len(text) + 4 for name, text in head) + len(answer.body)

    def _time_for(self, size: int) -> float:
        return _GRACE_S + size / self._min_bytes_per_s


def _piece(body: bytes, start: int, end: int) -> Message:
    return {"type": "http.response.body", "body": body[start:end], "more_body": end < len(body)}
