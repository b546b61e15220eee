"""Counts the bytes of TCP connections on their way to a port of this machine."""

import contextlib
import socket
import threading
from typing import Self

_CHUNK = 1 << 16


class Counter:
    """Forwards connections, and counts what passes: everything but the headers of TCP and IP.

    Attributes:
        port: Where to connect instead.
        num_bytes: Both ways, until now.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self.num_bytes = 0
        self._lock = threading.Lock()
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listening.getsockname()[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._target))
            for pair in ((near, far), (far, near)):
                threading.Thread(target=self._forward, args=pair, daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK):
                with self._lock:
                    self.num_bytes += len(data)
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
