"""The public port: TLS 1.3, HTTP, and no more connections than were allowed."""

import asyncio
import socket
import ssl
import threading
from collections import Counter

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from fedpeft.errors import ConfigError
from fedpeft_server.fleet.config import FleetConfig

_LONGEST_HEAD = 16 * 1024
_LINGER_S = 1.0


class Listener:
    """One uvicorn server in a thread of its own."""

    def __init__(self, app: ASGIApp, config: FleetConfig) -> None:
        self._config = config
        self._app = app
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self.port = config.port

    def start(self) -> None:
        """See `Fleet.start`."""
        config = self._config
        settings = uvicorn.Config(
            self._app,
            http=_connections(config),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=int(config.head_timeout_s) + 1,
            timeout_graceful_shutdown=int(config.stop_timeout_s) + 1,
            h11_max_incomplete_event_size=_LONGEST_HEAD,
            ssl_certfile=config.certificate,
            ssl_keyfile=config.key,
        )
        try:
            settings.load()
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"the fleet cannot use certificate {config.certificate} with key {config.key}: "
                f"{error}"
            ) from error
        assert settings.ssl is not None
        settings.ssl.minimum_version = ssl.TLSVersion.TLSv1_3
        listening = self._bind()
        self.port = listening.getsockname()[1]
        self._server = uvicorn.Server(settings)
        self._thread = threading.Thread(
            target=self._server.run, args=([listening],), name="fleet", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Lets open requests end, then closes."""
        if self._server is None or self._thread is None:
            return
        self._server.should_exit = True
        self._thread.join()
        self._server = self._thread = None

    def _bind(self) -> socket.socket:
        config = self._config
        family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
        try:
            return socket.create_server((config.host, config.port), family=family, backlog=2048)
        except OSError as error:
            raise ConfigError(
                f"the fleet cannot listen on {config.host}:{config.port}: {error}"
            ) from error


def _connections(config: FleetConfig) -> type[asyncio.Protocol]:
    """A connection of uvicorn that counts its like and does not wait for ever."""
    open_by_peer: Counter[str] = Counter()

    class Connection(H11Protocol):
        """One connection of a peer."""

        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            open_by_peer[self._peer] += 1
            if (
                open_by_peer[self._peer] > config.max_connections_per_peer
                or open_by_peer.total() > config.max_connections
            ):
                transport.abort()
            self._abort_in(config.head_timeout_s)

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            open_by_peer[self._peer] -= 1
            self._stop_waiting()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._answering:
                self._stop_waiting()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.transport.is_closing():  # TLS waits half a minute for the peer to agree
                self._abort_in(_LINGER_S)
            elif not self._answering:
                self._abort_in(config.head_timeout_s)

        def shutdown(self) -> None:
            if self._answering:
                super().shutdown()
            else:
                self.transport.abort()

        @property
        def _peer(self) -> str:
            return self.client[0] if self.client else ""

        @property
        def _answering(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _abort_in(self, seconds: float) -> None:
            self._stop_waiting()
            self._timer = self.loop.call_later(seconds, self.transport.abort)

        def _stop_waiting(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return Connection
