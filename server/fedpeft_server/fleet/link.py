"""Flower's link state in memory, with its nodes and runs.

With `mailbox`, `gate` and `answers` the only modules of the server that import what Flower does
not publish.
"""

import logging
from datetime import datetime
from typing import cast

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)
from flwr.common.constant import (
    HEARTBEAT_MIN_INTERVAL,
    NOOP_ACCOUNT_NAME,
    NOOP_FLWR_AID,
    Status,
)
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
from flwr.supercore.constant import (
    NOOP_FEDERATION_ID,
    NodeStatus,
    TaskType,
)
from flwr.supercore.fab import Fab
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from flwr.supercore.run import Run as Run
from flwr.superlink.federation import NoOpFederationManager

from fedpeft.errors import ConfigError, IdentityError
from fedpeft_server.fleet.bundle import Bundle


class Link:
    """Nodes and runs. Safe to use from any thread."""

    def __init__(self) -> None:
        """Builds the state; it does not listen, and starts no process and no thread."""
        flower = logging.getLogger("flwr")
        flower.handlers.clear()  # it also goes to the handlers that this process has
        flower.setLevel(logging.WARNING)
        self.state = InMemoryLinkState(NoOpFederationManager(), InMemoryObjectStore())

    def register(self, public_key: bytes) -> int:
        """See `Fleet.register`."""
        key = _canonical(public_key)
        with self.state.lock:
            known = self.state.get_node_id_by_public_key(key)
            if known is not None:
                return known
            try:
                node_id = self.state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, 0)
            except ValueError as error:
                raise IdentityError(
                    "a node with this key was unregistered; it needs a new key to come back"
                ) from error
            # Flower stores no message for a node that never was there.
            self.state.activate_node(node_id, HEARTBEAT_MIN_INTERVAL)
            self.state.deactivate_node(node_id)
            return node_id

    def unregister(self, node_id: int) -> None:
        """See `Fleet.unregister`."""
        try:
            self.state.delete_node(NOOP_FLWR_AID, node_id)
        except ValueError as error:
            raise IdentityError(f"no node {node_id} is registered") from error

    def node_of(self, public_key: bytes) -> int | None:
        """Returns the registered node with this key."""
        return self.state.get_node_id_by_public_key(public_key)

    def online(self) -> dict[int, datetime]:
        """Returns the nodes that are connected now, and since when."""
        with self.state.lock:
            return {
                node.node_id: datetime.fromisoformat(node.last_activated_at)
                for node in self.state.get_node_info(statuses=[NodeStatus.ONLINE])
            }

    def open_run(self, bundle: Bundle) -> int:
        """Opens a run. No task of it is ever offered to an executor of Flower's."""
        state = self.state
        state.store_fab(Fab(bundle.hash, bundle.content, {}))
        run_id = state.create_run(
            fab_id=bundle.name,
            fab_version=bundle.version,
            fab_hash=bundle.hash,
            override_config={},
            federation_id=NOOP_FEDERATION_ID,
            federation_config=None,
            flwr_aid=NOOP_FLWR_AID,
            primary_task_type=TaskType.SERVER_APP,
        )
        task_id = cast(int, state.run_ids[run_id].run.primary_task_id)
        token = state.claim_task(task_id)
        state.activate_task(task_id)
        with state.lock_task_store:  # a token expires without heartbeats, and the run with it
            del state.task_token_store[task_id]
            del state.task_token_to_task_id[cast(str, token)]
        return run_id

    def close_run(self, run_id: int) -> None:
        """Closes a run and drops its messages."""
        self.state.stop_run(run_id)

    def run(self, run_id: int) -> Run:
        """Returns an open run.

        Raises:
            ConfigError: If there is none.
        """
        for run in self.state.get_run_info(run_ids=[run_id], statuses=[Status.RUNNING]):
            return run
        raise ConfigError(f"no run {run_id} is open")


def _canonical(public_key: bytes) -> bytes:
    """The key as a node sends it."""
    try:
        key = load_pem_public_key(public_key)
    except ValueError as error:
        raise IdentityError(f"expected a public key in PEM: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise IdentityError("expected an elliptic-curve key, as `fedpeft.identity.keys` makes them")
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
