"""Which Flower node is which client: from enrolment to revocation, and again after a restart."""

import threading
from datetime import datetime

from fedpeft_server.fleet import Fleet
from fedpeft_server.state import State


class Nodes:
    """The nodes of all clients that may take part. Safe to use from any thread."""

    def __init__(self, fleet: Fleet, state: State) -> None:
        """Registers every client of the database with the fleet, which remembers nothing."""
        self._fleet = fleet
        self._lock = threading.Lock()
        self._node_of: dict[str, int] = {}
        for client in state.clients():
            if client.revoked_at is None:
                self.register(client.client_id, client.node_public_key)

    def register(self, client_id: str, public_key: bytes) -> None:
        """Lets a client connect; with a new key the old one no longer does.

        Raises:
            IdentityError: If the key cannot be used.
        """
        node_id = self._fleet.register(public_key)
        with self._lock:
            before = self._node_of.get(client_id)
            self._node_of[client_id] = node_id
        if before not in (None, node_id):
            self._fleet.unregister(before)

    def unregister(self, client_id: str) -> None:
        """Lets a client no longer connect, also where it is connected now."""
        with self._lock:
            node_id = self._node_of.pop(client_id, None)
        if node_id is not None:
            self._fleet.unregister(node_id)

    def node_of(self, client_id: str) -> int | None:
        """Returns the node's id; None for a client that may not take part."""
        with self._lock:
            return self._node_of.get(client_id)

    def online(self) -> dict[str, datetime]:
        """Returns the clients that are connected now, and since when (UTC)."""
        since = self._fleet.online()
        with self._lock:
            return {c: since[node] for c, node in self._node_of.items() if node in since}
