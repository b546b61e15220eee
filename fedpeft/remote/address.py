"""Where a server is called."""

from dataclasses import dataclass
from typing import Self

from fedpeft.errors import InputError

DEFAULT_PORT = 7443


@dataclass(frozen=True, kw_only=True)
class ServerAddress:
    """Host and port of a server.

    Attributes:
        host: Name or address; its certificate must be for exactly this.
        port: 7443 where none was named.
    """

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `host`, `host:port`, `address`, or `[IPv6 address]:port`.

        Raises:
            InputError: If it is something else.
        """
        host, port = text, str(DEFAULT_PORT)
        if text.startswith("["):
            host, bracket, rest = text[1:].partition("]")
            if rest or not bracket:
                port = rest.removeprefix(":") if rest.startswith(":") else ""
        elif text.count(":") == 1:
            host, _, port = text.partition(":")
        sound = host and not any(c.isspace() or c in "/@[]," for c in host)
        if not (sound and port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536):
            raise InputError(f"expected a server as host or host:port, got {text!r}")
        return cls(host=host.lower(), port=int(port))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"
