"""The fleet: who may connect, who is connected, and the runs that messages belong to."""

from datetime import datetime
from typing import Self

from fedpeft_server.fleet.answers import Answers
from fedpeft_server.fleet.bundle import Bundle
from fedpeft_server.fleet.config import FleetConfig
from fedpeft_server.fleet.doorbell import Doorbell
from fedpeft_server.fleet.gate import Gate
from fedpeft_server.fleet.grid import FleetGrid
from fedpeft_server.fleet.guard import Guard
from fedpeft_server.fleet.link import Link
from fedpeft_server.fleet.listener import Listener
from fedpeft_server.fleet.mailbox import Mailbox
from fedpeft_server.fleet.traffic import Traffic


class Fleet:
    """Flower's link state with a public port. It is in memory: our database is the state of record.

    After a crash the coordinator makes a new one, registers every node again, opens its runs again
    and sends the messages of open rounds again. Safe to use from any thread.
    """

    def __init__(self, config: FleetConfig) -> None:
        """Prepares the fleet; nodes can be registered and runs opened before it listens."""
        self._link = Link()
        self._mailbox = Mailbox(self._link.state)
        self._doorbell = Doorbell()
        self._traffic = Traffic()
        gate = Gate(self._link, self._mailbox)
        answers = Answers(self._link, self._mailbox)
        guard = Guard(gate, answers, self._mailbox, self._doorbell, self._traffic, config)
        self._listener = Listener(guard, config)

    @property
    def port(self) -> int:
        """Where it listens; known once it was started."""
        return self._listener.port

    def start(self) -> None:
        """Listens: nodes can connect.

        Raises:
            ConfigError: If the address cannot be bound or the certificate not be used.
        """
        self._listener.start()

    def stop(self) -> None:
        """Lets open requests end, then closes the port, for good."""
        self._doorbell.close()
        self._listener.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def register(self, public_key: bytes) -> int:
        """Lets the holder of a key connect.

        Args:
            public_key: Of an elliptic-curve key, as PEM.

        Returns:
            The node's id; the same one for the same key, as long as this fleet lives.

        Raises:
            IdentityError: If it is no such key, or it was unregistered before: that is for good.
        """
        return self._link.register(public_key)

    def unregister(self, node_id: int) -> None:
        """Lets a node's key no longer connect; a message to it gets an error as its reply.

        Raises:
            IdentityError: If no such node is registered.
        """
        self._link.unregister(node_id)
        self._doorbell.leave(node_id)
        self._mailbox.look_again()

    def online(self) -> dict[int, datetime]:
        """Returns the nodes that are connected now, and since when (UTC)."""
        return self._link.online()

    def open_run(self, bundle: Bundle) -> int:
        """Opens a run and returns Flower's id of it."""
        return self._link.open_run(bundle)

    def close_run(self, run_id: int) -> None:
        """Closes a run: its messages are dropped and replies to them no longer taken."""
        self._link.close_run(run_id)
        self._mailbox.look_again()

    def grid(self, run_id: int) -> FleetGrid:
        """Returns what sends messages of an open run.

        Raises:
            ConfigError: If no such run is open.
        """
        return FleetGrid(self._link, self._mailbox, self._doorbell, self._link.run(run_id).run_id)

    def traffic(self, run_id: int) -> tuple[int, int]:
        """Returns the bytes sent and received for a run: HTTP heads and bodies, without TLS.

        Questions for messages that got none, and heartbeats, belong to no run.
        """
        return self._traffic.of(run_id)
