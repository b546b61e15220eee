"""One call, as a service sees it: who asks, and whether it still may."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fedpeft.identity.certificates import Identity
from fedpeft.identity.roles import Role
from fedpeft_server.access.rules import sees_all_clients


@dataclass(kw_only=True)
class Call:
    """What a service gets in place of gRPC's context.

    Attributes:
        method: Its path.
        request_id: What the log and the audit log call it; the caller is told.
        caller: Whoever was let in.
        gone: Set when nobody waits for the answer any more.
        recheck: Raises a refusal if the caller would no longer be let in.
        subject: What it is about: a run, a client, an adapter.
        details: What else the log says of it.
    """

    method: str
    request_id: str
    caller: Identity
    gone: threading.Event
    recheck: Callable[[], None]
    subject: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    def about(self, subject: str, **details: str | int) -> None:
        """Says what the call is about, for the logs."""
        self.subject = subject
        self.details |= details

    def is_active(self) -> bool:
        """Returns whether somebody still waits for the answer."""
        return not self.gone.is_set()

    def pause(self, seconds: float) -> None:
        """Waits, unless nobody waits for the answer any more."""
        self.gone.wait(seconds)

    @property
    def sees_all_clients(self) -> bool:
        """Whether the caller is told of every client."""
        return sees_all_clients(self.caller.roles)

    @property
    def own_client(self) -> str | None:
        """The one client that the caller may be told of, besides."""
        return self.caller.name if Role.DATA_OWNER in self.caller.roles else None

    def may_see(self, client_id: str) -> bool:
        """Returns whether the caller is told of a client."""
        return self.sees_all_clients or client_id == self.own_client
