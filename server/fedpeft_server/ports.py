"""What the control plane needs of the parts that do the work."""

from collections.abc import Mapping
from typing import Protocol

from fedpeft_server.records import JsonValue, RemovalRecord, RunRecord


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


class RemovalEngine(Protocol):
    """Brings removal requests forward; from `planned` on it alone changes their state."""

    def start(self, request_id: str) -> None:
        """Takes up a request that is planned and has what its job needs; again changes nothing.

        One whose job runs at the client waits there until `submit`.
        """

    def cancel(self, request_id: str, reason: str) -> RemovalRecord:
        """Ends a request before anything of it is published, in whatever state it is.

        The sealed records and the job's key are destroyed.

        Raises:
            NotFoundError: If there is no such request.
            WrongStateError: If it has ended, or is being published.
        """

    def submit(
        self,
        request_id: str,
        adapter: bytes,
        result: Mapping[str, JsonValue],
        files: Mapping[str, bytes],
    ) -> RemovalRecord:
        """Takes what the job at the client made; the same again changes nothing.

        Args:
            request_id: Of a planned request whose job runs at the client.
            adapter: The successor's tensors as safetensors.
            result: `fedpeft.unlearning.job.JobResult` as JSON says it.
            files: Of the PEFT export, by plain name.

        Raises:
            InputError: If the adapter or the result is not one that the request can have; nothing
                was changed.
            NotFoundError: If there is no such request.
            WrongStateError: If it waits for no result.
        """
