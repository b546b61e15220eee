"""A port that speaks TLS with a holder's certificate, and says nothing else."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedpeft.identity.credentials import CERTIFICATE, KEY


@contextmanager
def tls_port(holder: Path, host: str = "127.0.0.1") -> Iterator[int]:
    """Listens until the block ends; yields the port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(holder / CERTIFICATE, holder / KEY)
    with socket.create_server((host, 0)) as listener:
        thread = threading.Thread(target=_serve, args=(listener, context))
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def _serve(listener: socket.socket, context: ssl.SSLContext) -> None:
    while True:
        try:
            raw, _ = listener.accept()
        except OSError:
            return
        with raw, suppress(OSError):
            context.wrap_socket(raw, server_side=True).close()


def closed_port() -> int:
    """A port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
