"""A web server in a thread of its own."""

import socket
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import uvicorn
from starlette.types import ASGIApp

from fedpeft.errors import ConfigError

_LONGEST_HEAD = 16 * 1024


class HttpServer:
    """Listens as soon as it is made; answers in a `with` block, and lets open requests end.

    Attributes:
        port: It listens at.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        certificate: Path | None = None,
        key: Path | None = None,
        stop_timeout_s: int = 30,
    ) -> None:
        """Prepares it.

        Args:
            app: What answers.
            host: Address to listen at.
            port: 0: any that is free.
            certificate: For TLS, PEM; None: plain HTTP.
            key: Of the certificate.
            stop_timeout_s: How long open requests may take at the end.

        Raises:
            ConfigError: If it cannot listen there, or the certificate cannot be used.
        """
        config = uvicorn.Config(
            app,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=stop_timeout_s,
            h11_max_incomplete_event_size=_LONGEST_HEAD,
            http="h11",
            ssl_certfile=certificate,
            ssl_keyfile=key,
        )
        try:
            config.load()
        except (OSError, ValueError) as error:
            raise ConfigError(f"certificate {certificate} cannot be used: {error}") from error
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.create_server((host, port), family=family, backlog=2048)
        except OSError as error:
            raise ConfigError(f"cannot listen at {host}:{port} ({error.strerror})") from error
        self.port: int = self._socket.getsockname()[1]
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, args=([self._socket],), name="http", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()
