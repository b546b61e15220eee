"""What the control plane needs of the parts that do the work."""

from collections.abc import Mapping
from typing import Protocol


class Engine(Protocol):
    """Brings runs forward. Every method returns soon and may be called from any thread.

    The engine writes a run's status and its events, and the last event before the status that ends
    the run, so that whoever watches sees it.
    """

    def start(self) -> None:
        """Takes up every stored run that has not ended."""

    def submit(self, run_id: str) -> None:
        """Takes up a run that was stored as submitted; again it changes nothing."""

    def stop(self, run_id: str, reason: str) -> None:
        """Gives up the open round; the run's status says `stopped` when this returns.

        Raises:
            WrongStateError: If the run has ended.
        """

    def resume(self, run_id: str) -> None:
        """Goes on with the open round of a stopped or failed run.

        Raises:
            WrongStateError: If the run is neither.
        """

    def shutdown(self) -> None:
        """Leaves every run where it is, to be taken up by the next start."""


class NodeRegistrar(Protocol):
    """Knows which nodes may connect and which are connected; `fleet.Fleet` is one."""

    def register(self, public_key: bytes) -> int:
        """Lets the holder of a key connect; returns the node's id, the same for the same key.

        Raises:
            IdentityError: If it is no key for a node, or was unregistered before.
        """

    def unregister(self, node_id: int) -> None:
        """Lets a node no longer connect, from its next request on."""

    def online(self) -> Mapping[int, object]:
        """Returns the nodes that are connected now."""
