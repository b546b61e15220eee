"""What the control plane needs of the parts that do the work."""

from collections.abc import Mapping
from typing import Protocol

from fedpeft_server.records import RunRecord


class RunEngine(Protocol):
    """Brings runs forward; it alone changes their status. `engine.Engine` is one."""

    def start(self, run_id: str) -> None:
        """Begins a run that is in the database; again it changes nothing."""

    def stop(self, run_id: str, reason: str) -> RunRecord:
        """Stops a run where it can be resumed.

        Raises:
            WrongStateError: If it is not under way.
        """

    def resume(self, run_id: str) -> RunRecord:
        """Goes on with a run that was stopped or failed.

        Raises:
            WrongStateError: If it was neither.
        """


class ClientNodes(Protocol):
    """Knows which nodes may connect, and which are connected. `nodes.Nodes` is one."""

    def register(self, client_id: str, public_key: bytes) -> None:
        """Lets a client connect with this key alone.

        Raises:
            IdentityError: If the key cannot be used.
        """

    def unregister(self, client_id: str) -> None:
        """Lets a client no longer connect, also where it is connected now."""

    def online(self) -> Mapping[str, object]:
        """Returns the clients that are connected now."""
