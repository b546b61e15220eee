"""How the fleet's public port is opened and what one peer may ask of it."""

from dataclasses import dataclass
from pathlib import Path

from fedpeft.errors import ConfigError

_MIB = 1 << 20
_LONGEST_WAIT_S = 60.0  # the signature of the question must still be good when it is answered


@dataclass(frozen=True, kw_only=True)
class FleetConfig:
    """Where the fleet listens, and its limits.

    Attributes:
        certificate: The server's, in PEM.
        key: Its private key, in PEM.
        host: Address to listen on.
        port: 0 takes a free one.
        max_message_bytes: Of one request of a node: a reply with its tensors. 2 GiB at most,
            which is what protobuf can hold.
        max_transfers: Messages on their way in or out at the same time. With `max_message_bytes` it
            bounds the memory that nodes can make the server use.
        max_connections: Open at the same time.
        max_connections_per_peer: The same, from one address.
        head_timeout_s: For TLS to be followed by a whole request head, and idle time between two
            requests.
        min_bytes_per_s: A peer that sends or takes more slowly is cut off, after 10 s of grace. A
            request must be in after three minutes in any case: 10 MB need 0.5 Mbit/s.
        max_wait_s: How long a node's question for a message is held open when there is none; 60 at
            most.
        stop_timeout_s: For open requests to end when the fleet stops.
    """

    certificate: Path
    key: Path
    host: str = "127.0.0.1"
    port: int = 0
    max_message_bytes: int = 256 * _MIB
    max_transfers: int = 8
    max_connections: int = 4096
    max_connections_per_peer: int = 1024
    head_timeout_s: float = 20.0
    min_bytes_per_s: int = 16 * 1024
    max_wait_s: float = 20.0
    stop_timeout_s: float = 5.0

    def __post_init__(self) -> None:
        if not 0 <= self.port < 1 << 16:
            raise ConfigError(f"expected a port of 0 to 65535, got {self.port}")
        if not 0 < self.max_message_bytes < 1 << 31:
            raise ConfigError(
                f"expected max_message_bytes of 1 to {(1 << 31) - 1}, got {self.max_message_bytes}"
            )
        if self.max_wait_s > _LONGEST_WAIT_S:
            raise ConfigError(
                f"expected max_wait_s of {_LONGEST_WAIT_S:g} at most, got {self.max_wait_s}"
            )
        positive = {
            "max_transfers": self.max_transfers,
            "max_connections": self.max_connections,
            "max_connections_per_peer": self.max_connections_per_peer,
            "head_timeout_s": self.head_timeout_s,
            "min_bytes_per_s": self.min_bytes_per_s,
            "max_wait_s": self.max_wait_s,
            "stop_timeout_s": self.stop_timeout_s,
        }
        for name, value in positive.items():
            if not 0 < value < float("inf"):
                raise ConfigError(f"expected {name} to be positive, got {value}")
