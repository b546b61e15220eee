"""Pages for monitoring, on a port of their own without TLS: /metrics, /ready and /alive."""

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from fedpeft.errors import ConfigError

_PLAIN = "text/plain; charset=utf-8"


class Pages:
    """Serves the pages from a thread; they say nothing of clients, rows or keys."""

    def __init__(
        self, host: str, port: int, registry: CollectorRegistry, is_ready: Callable[[], bool]
    ) -> None:
        """Binds the port.

        Raises:
            ConfigError: If it cannot be bound.
        """

        class Handler(BaseHTTPRequestHandler):
            timeout = 10  # for a whole request: nobody holds a thread for long

            def do_GET(self) -> None:
                content, kind, status = b"", _PLAIN, 200
                match self.path.partition("?")[0]:
                    case "/metrics":
                        content, kind = generate_latest(registry), CONTENT_TYPE_LATEST
                    case "/alive":
                        content = b"alive\n"
                    case "/ready":
                        ready = is_ready()
                        content, status = (b"ready\n", 200) if ready else (b"not ready\n", 503)
                    case _:
                        content, status = b"there are /metrics, /ready and /alive\n", 404
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                """Nothing: monitoring asks every few seconds."""

        try:
            self._server = ThreadingHTTPServer((host, port), Handler)
        except OSError as error:
            raise ConfigError(
                f"listen.metrics_port: {host}:{port} cannot be bound ({error.strerror})"
            ) from error
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="pages"
        )

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Begins to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Closes the port."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()
