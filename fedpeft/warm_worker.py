"""A process that loads what it needs once and then answers calls, one at a time.

It exists for work that must not take its caller down with it: a model that runs out of memory, a
call that hangs, a kill. The caller is told, and the next call finds a new process. The process ends
when its parent does, however the parent ends. It is spawned and not forked: a fork of a process
with threads, or with a CUDA context, cannot be used.
"""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

from fedpeft.errors import WorkerLostError

_SPAWN = multiprocessing.get_context("spawn")
_RESULT, _ERROR, _PROGRESS = "result", "error", "progress"


class WarmWorker:
    """Runs methods of one object that lives in a process of its own.

    Threads may share one; their calls wait for each other.
    """

    def __init__(self, factory: Callable[[], object], *, name: str) -> None:
        """Starts nothing yet.

        Args:
            factory: Makes the object, in the process; it is pickled, so a top-level function or a
                `functools.partial` of one. A method that takes `progress` is given a function that
                sends what it is called with to the caller.
            name: Of the process, for those who look at a list of them.
        """
        self._factory = factory
        self._name = name
        # Whoever has it owns the pipes: closed by another thread, a pipe's number could be another
        # file's by the time that a call reads from it, or the call would wait for ever.
        self._lock = threading.Lock()
        self._pipe: Connection | None = None
        self._lifeline: Connection | None = None
        self._of_process = threading.Lock()
        self._process: SpawnProcess | None = None
        self._closed = False

    @property
    def pid(self) -> int | None:
        """The process that would answer a call now; None where none has been started."""
        process = self._process
        return process.pid if process is not None else None

    def call(
        self,
        method: str,
        *args: Any,
        timeout_s: float | None = None,
        progress: Callable[[Any], None] | None = None,
    ) -> Any:
        """Returns what the method returns; starts the process where there is none.

        Args:
            method: Name of a method of the object.
            args: Its arguments; they and the result are pickled.
            timeout_s: The process is killed if it has not answered by then.
            progress: Is called with what the method reports; the method then gets it by keyword.

        Raises:
            WorkerLostError: If the process ended, was killed at its deadline, or was closed.
        """
        with self._lock:
            pipe = self._started()
            deadline = None if timeout_s is None else time.monotonic() + timeout_s
            try:
                pipe.send((method, args, progress is not None))
                while True:
                    left = None if deadline is None else max(0.0, deadline - time.monotonic())
                    if not pipe.poll(left):
                        self._kill()
                        raise WorkerLostError(
                            f"{self._name}: {method} did not answer within {timeout_s:g} s and its "
                            "process was ended"
                        )
                    kind, content = pipe.recv()
                    if kind == _PROGRESS:
                        assert progress is not None
                        progress(content)
                    elif kind == _ERROR:
                        raise content
                    else:
                        return content
            except (EOFError, OSError) as error:
                self._kill()
                raise WorkerLostError(
                    f"{self._name}: its process ended during {method}; it may be out of memory"
                ) from error

    def close(self) -> None:
        """Ends the process for good, also in the middle of a call of another thread."""
        with self._of_process:
            self._closed = True
            if self._process is not None:
                self._process.kill()  # a call finds that its pipe has ended
        with self._lock:
            self._kill()

    def _started(self) -> Connection:
        if self._process is not None and self._process.is_alive() and self._pipe is not None:
            return self._pipe
        self._kill()
        ours, theirs = _SPAWN.Pipe()
        watched, self._lifeline = _SPAWN.Pipe(duplex=False)
        process = _SPAWN.Process(
            target=_serve, args=(theirs, watched, self._factory), name=self._name, daemon=True
        )
        with self._of_process:
            if not self._closed:
                process.start()
                self._process = process
        theirs.close()
        watched.close()
        self._pipe = ours
        if self._process is None:
            self._kill()
            raise WorkerLostError(f"{self._name}: it was closed")
        return ours

    def _kill(self) -> None:
        with self._of_process:
            process, self._process = self._process, None
            if process is not None:
                process.kill()
                process.join()
        for connection in (self._pipe, self._lifeline):
            if connection is not None:
                connection.close()
        self._pipe = self._lifeline = None


def _serve(pipe: Connection, lifeline: Connection, factory: Callable[[], object]) -> None:
    threading.Thread(target=_end_with_parent, args=(lifeline,), daemon=True).start()
    made: object | None = None
    while True:
        try:
            method, args, wants_progress = pipe.recv()
        except EOFError:
            return
        try:
            if made is None:
                made = factory()
            kwargs = {"progress": lambda c: pipe.send((_PROGRESS, c))} if wants_progress else {}
            answer = (_RESULT, getattr(made, method)(*args, **kwargs))
        except Exception as error:  # whatever it is belongs to the caller
            answer = (_ERROR, error)
        pipe.send(answer)


def _end_with_parent(lifeline: Connection) -> None:
    """The other end of this pipe is the parent's alone: it closes when the parent is gone."""
    try:
        lifeline.recv_bytes()
    except (EOFError, OSError):
        os._exit(1)
