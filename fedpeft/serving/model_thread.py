"""The one thread that runs the model: steps of answering, and other work between two of them."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from fedpeft.errors import UnavailableError

_T = TypeVar("_T")


class Answering(Protocol):
    """What answers requests, step by step."""

    def has_work(self) -> bool:
        """Returns whether `step` would do something."""

    def step(self) -> None:
        """Brings the requests that are there one step further."""

    def fail_all(self, error: Exception) -> None:
        """Ends every request that is there, and refuses those that come."""


class ModelThread:
    """Runs steps while there are requests, and work that `call` hands over between two steps."""

    def __init__(self, answering: Answering) -> None:
        """Takes what answers; `start` starts the thread."""
        self._answering = answering
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._wake = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after its step; requests that are still there fail."""
        with self._wake:
            self._stopped = True
            self._wake.notify()
        self._thread.join()

    def wake(self) -> None:
        """Says that there is a request."""
        with self._wake:
            self._wake.notify()

    def call(self, work: Callable[[], _T]) -> "Future[_T]":
        """Runs `work` between two steps.

        Raises:
            UnavailableError: If the thread was stopped.
        """
        future: Future[_T] = Future()
        with self._wake:
            if self._stopped:
                raise UnavailableError("this process is stopping; ask another replica")
            self._calls.append((work, future))
            self._wake.notify()
        return future

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._stopped or self._calls or self._answering.has_work()):
                    self._wake.wait()
                calls, self._calls = self._calls, deque()
                stopped = self._stopped
            for work, future in calls:
                _carry_out(work, future)
            if stopped:
                self._answering.fail_all(UnavailableError("this process was stopped"))
                return
            if self._answering.has_work():
                self._answering.step()


def _carry_out(work: Callable[[], Any], future: "Future[Any]") -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(work())
    except Exception as error:
        future.set_exception(error)
