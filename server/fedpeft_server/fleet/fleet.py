"""The fleet: who may connect, who is connected, and the runs that messages belong to."""

from datetime import datetime
from typing import Self

from fedpeft_server.fleet.bundle import Bundle
from fedpeft_server.fleet.config import FleetConfig
from fedpeft_server.fleet.grid import FleetGrid


class Fleet:
    """An embedded SuperLink. Its state is in memory: our database is the state of record.

    After a crash the coordinator makes a new one, registers every node again, opens its runs again
    and sends the messages of open rounds again. Safe to use from any thread.
    """

    def __init__(self, config: FleetConfig) -> None:
        """Prepares the fleet; nodes can be registered and runs opened before it listens."""
        raise NotImplementedError

    @property
    def port(self) -> int:
        """Where it listens; known once it was started."""
        raise NotImplementedError

    def start(self) -> None:
        """Listens; returns when nodes can connect.

        Raises:
            ConfigError: If the address cannot be bound or the certificate not be used.
        """
        raise NotImplementedError

    def stop(self) -> None:
        """Lets open requests end, then closes the port; a second time does nothing."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        raise NotImplementedError

    def __exit__(self, *_: object) -> None:
        raise NotImplementedError

    def register(self, public_key: bytes) -> int:
        """Lets the holder of a key connect.

        Args:
            public_key: Of an elliptic-curve key, as PEM.

        Returns:
            The node's id; the same one for the same key, as long as this fleet lives.

        Raises:
            IdentityError: If it is no such key, or it was unregistered before: that is for good.
        """
        raise NotImplementedError

    def unregister(self, node_id: int) -> None:
        """Lets a node's key no longer connect, from its next request on; messages to it expire."""
        raise NotImplementedError

    def online(self) -> dict[int, datetime]:
        """Returns the nodes that are connected now, and since when (UTC)."""
        raise NotImplementedError

    def open_run(self, bundle: Bundle) -> int:
        """Opens a run and returns Flower's id of it."""
        raise NotImplementedError

    def close_run(self, run_id: int) -> None:
        """Closes a run: its messages are dropped and replies to them no longer taken."""
        raise NotImplementedError

    def grid(self, run_id: int) -> FleetGrid:
        """Returns what sends messages of an open run.

        Raises:
            ConfigError: If no such run is open.
        """
        raise NotImplementedError

    def traffic(self, run_id: int) -> tuple[int, int]:
        """Returns the bytes sent and received for a run: HTTP heads and bodies, without TLS.

        Questions for messages that got none, and heartbeats, belong to no run.
        """
        raise NotImplementedError
