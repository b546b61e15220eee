"""A network that counts bytes and can be cut."""

import contextlib
import socket
import threading
from typing import Self

_CHUNK = 1 << 16


class Proxy:
    """Forwards TCP connections to a port of this machine."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.num_bytes_up = self.num_bytes_down = 0
        self.swallow_down = threading.Event()
        """While it is set, what the server sends is lost."""
        self.swallowed = threading.Event()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self.cut()
        self._thread.join()

    def cut(self) -> None:
        """Ends all connections at once."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                _end(end)

    def leave(self) -> None:
        """Ends all connections for those who called; the server is not told."""
        with self._lock:
            for near, _ in self._pairs:
                _end(near)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self.target))
            with self._lock:
                self._pairs.append((near, far))
            threading.Thread(target=self._up, args=(near, far), daemon=True).start()
            threading.Thread(target=self._down, args=(far, near), daemon=True).start()

    def _up(self, near: socket.socket, far: socket.socket) -> None:
        for data in _received(near):
            self.num_bytes_up += len(data)
            if not _sent(far, data):
                break

    def _down(self, far: socket.socket, near: socket.socket) -> None:
        for data in _received(far):
            self.num_bytes_down += len(data)
            if self.swallow_down.is_set():
                self.swallowed.set()
            elif not _sent(near, data):
                break
        _end(near)


def _received(end: socket.socket):
    while True:
        try:
            data = end.recv(_CHUNK)
        except OSError:
            return
        if not data:
            return
        yield data


def _sent(end: socket.socket, data: bytes) -> bool:
    try:
        end.sendall(data)
    except OSError:
        return False
    return True


def _end(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
