"""Lets a node's open question for messages be answered the moment that any thread sends one."""

import asyncio
from collections.abc import Callable


class Doorbell:
    """At most one open question a node: a newer one sends the older one home."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._bells: dict[int, asyncio.Event] = {}
        self._away: set[int] = set()
        self._closed = False

    def ring(self, node_id: int) -> None:
        """Lets a node's question look again whether there is a message; from any thread."""
        self._in_loop(self._bell, node_id)

    def dismiss(self, node_id: int) -> None:
        """Ends a node's question with nothing; from any thread."""
        self._in_loop(self._send_home, node_id)

    def leave(self, node_id: int) -> None:
        """The same, also for questions on their way: the node leaves, or is unregistered."""
        self._away.add(node_id)
        self.dismiss(node_id)

    def enter(self, node_id: int) -> None:
        """Lets a node's questions wait again, and ends what its last process left open."""
        self._away.discard(node_id)
        self.dismiss(node_id)

    def close(self) -> None:
        """Ends every question, and those to come; from any thread."""
        self._closed = True
        self._in_loop(self._send_all_home)

    async def wait(
        self, node_id: int, there_is: Callable[[], bool], gone: asyncio.Task[None], timeout_s: float
    ) -> bool:
        """Waits for a message.

        Args:
            node_id: Whose question it is.
            there_is: Whether there is a message.
            gone: Ends when the node hung up.
            timeout_s: How long to wait.

        Returns:
            Whether there is a message that this question may take: a question that was sent home,
            or whose node hung up, would lose it.
        """
        self._loop = asyncio.get_running_loop()
        until = self._loop.time() + timeout_s
        bell = asyncio.Event()
        self._send_home(node_id)
        self._bells[node_id] = bell
        try:
            while self._may_wait(node_id, bell) and not gone.done():
                bell.clear()  # before the look: what is sent after it rings again
                if there_is():
                    return True
                left_s = until - self._loop.time()
                if left_s <= 0:
                    return False
                rung = asyncio.ensure_future(bell.wait())
                try:
                    await asyncio.wait(
                        {rung, gone}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED
                    )
                finally:
                    rung.cancel()
            return False
        finally:
            if self._bells.get(node_id) is bell:
                del self._bells[node_id]

    def _may_wait(self, node_id: int, bell: asyncio.Event) -> bool:
        dismissed = self._bells.get(node_id) is not bell
        return not (self._closed or dismissed or node_id in self._away)

    def _in_loop(self, call: Callable[..., None], *arguments: object) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call, *arguments)

    def _bell(self, node_id: int) -> None:
        if node_id in self._bells:
            self._bells[node_id].set()

    def _send_home(self, node_id: int) -> None:
        if node_id in self._bells:
            self._bells.pop(node_id).set()

    def _send_all_home(self) -> None:
        for node_id in list(self._bells):
            self._send_home(node_id)
