"""Which node is which client's: the fleet knows keys, everybody else knows names."""

import threading

from fedpeft.errors import IdentityError
from fedpeft_server.ports import NodeRegistrar
from fedpeft_server.state import State


class Roster:
    """Keeps the fleet's nodes as the state of record has its clients. Safe from any thread."""

    def __init__(self, state: State, nodes: NodeRegistrar) -> None:
        """Takes both; `register_all` comes next."""
        self._state, self._nodes = state, nodes
        self._lock = threading.Lock()
        self._node_ids: dict[str, tuple[int, bytes]] = {}

    def register_all(self) -> None:
        """Registers every client that may take part: a new fleet knows nobody."""
        for client in self._state.clients():
            if client.revoked_at is None:
                self.update(client.client_id)

    def update(self, client_id: str) -> None:
        """Makes the fleet what the state says of a client.

        It is read under the lock, so that of an enrolment and a revocation at the same time the
        later one counts.

        Raises:
            NotFoundError: If there is no such client.
            IdentityError: If its key is none for a node, or was unregistered before.
        """
        with self._lock:
            client = self._state.client(client_id)
            known = self._node_ids.get(client_id)
            key = client.node_public_key if client.revoked_at is None else None
            if known is not None and known[1] != key:
                del self._node_ids[client_id]
                self._nodes.unregister(known[0])
            if key is not None:
                self._node_ids[client_id] = (self._nodes.register(key), key)

    def node_id(self, client_id: str) -> int:
        """Returns a client's node.

        Raises:
            IdentityError: If the client is not enrolled, or was revoked.
        """
        with self._lock:
            try:
                return self._node_ids[client_id][0]
            except KeyError as error:
                raise IdentityError(f"client {client_id!r} has no node") from error

    def online(self) -> frozenset[str]:
        """Returns the clients whose nodes are connected now."""
        connected = self._nodes.online()
        with self._lock:
            return frozenset(name for name, (node, _) in self._node_ids.items() if node in connected)
