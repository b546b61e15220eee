"""Requests on their way through the model, as a web server's event loop waits for them."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from fedpeft.errors import RemoteError, UnavailableError
from fedpeft.serving.catalogue import Version
from fedpeft.serving.classification import ClassificationRequest
from fedpeft.serving.generation import Ended, Failed, GenerationRequest, Piece
from fedpeft.serving.refusals import Refused
from fedpeft.serving.sampling import Sampling
from fedpeft.serving.served import Served


class Answers:
    """Some requests of one version; `close` has to be called.

    Attributes:
        version: That answers all of them.
    """

    def __init__(self, served: Served, stack: ExitStack, version: Version) -> None:
        """Use `begin`."""
        self._served, self._stack = served, stack
        self.version = version
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()
        self._requests: list[GenerationRequest] | list[ClassificationRequest] = []

    @classmethod
    async def begin(cls, served: Served, name: str, *, patience_s: float) -> "Answers":
        """Takes the version that the name means now; waits while there is to be another one.

        Raises:
            RemoteError: If nothing answers under the name, or nothing does in time.
        """
        deadline = time.monotonic() + patience_s
        while True:
            change = served.catalogue.change()
            with ExitStack() as stack:
                version = stack.enter_context(served.catalogue.answering(name))
                if version is not None:
                    return cls(served, stack.pop_all(), version)
            # Shielded: others wait for the same change.
            waiting = asyncio.shield(asyncio.wrap_future(change))
            try:
                await asyncio.wait_for(waiting, max(0.0, deadline - time.monotonic()))
            except TimeoutError as error:
                raise Refused.NOT_SERVED.error(
                    f"the version of {name} was withdrawn, and the next one is not loaded yet; try "
                    "again"
                ) from error

    def close(self) -> None:
        """Ends it; what is not answered yet is answered no more."""
        for request in self._requests:
            request.cancel()
        self._stack.close()

    def generate(self, prompts: Sequence[Sequence[int]], samplings: Sequence[Sampling]) -> None:
        """Hands prompts over.

        Raises:
            RemoteError: If too many wait.
        """
        assert self._served.generator is not None
        requests = [
            GenerationRequest(
                adapter=self.version.digest,
                prompt=prompt,
                sampling=sampling,
                emit=lambda event, n=n: self._emit(n, event),  # type: ignore[misc]
            )
            for n, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True))
        ]
        with _refusing():
            self._served.generator.submit(requests)
        self._requests = requests
        self._served.thread.wake()

    def classify(self, rows: Sequence[Sequence[int]]) -> None:
        """Hands rows over.

        Raises:
            RemoteError: If too many wait.
        """
        assert self._served.classifier is not None
        requests = [
            ClassificationRequest(
                adapter=self.version.digest,
                row=row,
                emit=lambda found, n=n: self._emit(n, found),  # type: ignore[misc]
            )
            for n, row in enumerate(rows)
        ]
        with _refusing():
            self._served.classifier.submit(requests)
        self._requests = requests
        self._served.thread.wake()

    async def events(self) -> AsyncIterator[tuple[int, Piece | Ended]]:
        """Yields what happens to which prompt, until all are answered.

        Raises:
            RemoteError: If one cannot be answered.
        """
        num_open = len(self._requests)
        while num_open:
            n, event = await self._events.get()
            if isinstance(event, Failed):
                raise _failure(event.error)
            num_open -= isinstance(event, Ended)
            yield n, event

    async def probabilities(self) -> list[list[float]]:
        """Returns the probability of each class for each row.

        Raises:
            RemoteError: If one cannot be answered.
        """
        found: dict[int, list[float]] = {}
        while len(found) < len(self._requests):
            n, answer = await self._events.get()
            if isinstance(answer, Exception):
                raise _failure(answer)
            found[n] = answer
        return [found[n] for n in range(len(found))]

    def _emit(self, n: int, event: object) -> None:
        with suppress(RuntimeError):  # the loop has ended, and nobody waits any more
            self._loop.call_soon_threadsafe(self._events.put_nowait, (n, event))


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except UnavailableError as error:
        raise Refused.BUSY.error(str(error)) from error


def _failure(error: Exception) -> RemoteError:
    if isinstance(error, RemoteError):
        return error
    if isinstance(error, UnavailableError):
        return Refused.STOPPING.error(str(error))
    return Refused.FAILED.error(
        "the model failed at this request; the log of the serving process says how"
    )
