"""What is examined: the parts that a client would be made of, each opened once."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from fedpeft.errors import FedpeftError
from fedpeft.identity.credentials import Credentials
from fedpeft.remote import Connection
from fedpeft.remote.address import ServerAddress
from fedpeft.remote.records import ServerInfo
from fedpeft_client.policy import ClientPolicy
from fedpeft_client.state_folder import StateFolder

_TIMEOUT_S = 15.0


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, kw_only=True)
class Visit:
    """A server's answer to who it is.

    Attributes:
        info: The answer.
        asked_at: This machine's clock before the question.
        answered_at: And after the answer.
    """

    info: ServerInfo
    asked_at: datetime
    answered_at: datetime


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the client would be started with; None: not named, so what needs it is skipped.

    Attributes:
        server: Where it is called.
        identity: Folder with key and certificates.
        state: Folder of the client; there may be none yet.
        data: File with the rows.
        columns: That the rows must have.
        ledger: File or URL; None: the one in the folder.
        needs_gpu: Whether a CUDA device must be there, whatever the policy says.
        now: The clock.
    """

    server: ServerAddress | None = None
    identity: Path | None = None
    state: Path | None = None
    data: str | None = None
    columns: tuple[str, ...] = ()
    ledger: str | None = None
    needs_gpu: bool = False
    now: Callable[[], datetime] = _utc_now

    @cached_property
    def credentials(self) -> Credentials | FedpeftError | None:
        """Key and certificates, or why they cannot be used."""
        if self.identity is None:
            return None
        try:
            return Credentials.in_folder(self.identity)
        except FedpeftError as error:
            return error

    @cached_property
    def folder(self) -> StateFolder | FedpeftError | None:
        """Of the client, or why it cannot be used; None where it was not made yet."""
        if self.state is None or not self.state.exists():
            return None
        try:
            return StateFolder(self.state)
        except FedpeftError as error:
            return error

    @cached_property
    def policy(self) -> ClientPolicy | FedpeftError | None:
        """The owner's word, or why it cannot be read; None where there is no folder yet."""
        if not isinstance(self.folder, StateFolder):
            return self.folder
        try:
            return ClientPolicy.read(self.folder.policy)
        except FedpeftError as error:
            return error

    @property
    def policy_or_default(self) -> ClientPolicy:
        """The owner's word, or what a new folder would begin with."""
        return self.policy if isinstance(self.policy, ClientPolicy) else ClientPolicy()

    @cached_property
    def visit(self) -> Visit | FedpeftError | None:
        """What the server answers, or why there is no answer; None where it cannot be asked."""
        if self.server is None or not isinstance(self.credentials, Credentials):
            return None
        connection = Connection(self.server, self.credentials, timeout_s=_TIMEOUT_S, patience_s=0.0)
        with connection:
            asked_at = self.now()
            try:
                info = connection.get_server()
            except FedpeftError as error:
                return error
            return Visit(info=info, asked_at=asked_at, answered_at=self.now())
