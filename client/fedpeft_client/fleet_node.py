"""Flower as transport, the client's side: one node, its connection, its messages."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message, RecordDict


@dataclass(frozen=True, kw_only=True)
class Incoming:
    """A message that this node is to answer.

    Attributes:
        message: As Flower delivered it; `message.content` is for `wire.records.from_record`.
        bundle_hash: SHA-256 of its run's app bundle as the server states it, for the node's policy.
    """

    message: Message
    bundle_hash: str

    @property
    def message_type(self) -> str:
        """ "query" for the offer of a run, "train" for a round."""
        raise NotImplementedError

    @property
    def run_id(self) -> int:
        """Flower's id of the run."""
        raise NotImplementedError

    @property
    def round(self) -> str:
        """The round, as the server names the group of messages."""
        raise NotImplementedError

    @property
    def expires_at(self) -> float:
        """When a reply is worth nothing any more, in seconds since the epoch."""
        raise NotImplementedError


Handler = Callable[[Incoming], RecordDict]


class FleetNode:
    """A node's connection to a server.

    It connects again whenever the connection or the server is lost, and keeps telling the server
    that it is alive while a handler works for hours. Several in one process do not disturb each
    other. It installs no signal handlers and never ends the process.
    """

    def __init__(
        self,
        address: str,
        *,
        authority: bytes,
        key: ec.EllipticCurvePrivateKey,
        heartbeat_s: float = 10.0,
        wait_s: float = 20.0,
        max_message_bytes: int = 1 << 28,
    ) -> None:
        """Prepares the connection; nothing is sent yet.

        Args:
            address: "host:port".
            authority: The certificate of the authority that issued the server's, in PEM.
            key: The node's, whose public half is registered with the server.
            heartbeat_s: Between two signs of life, at least 10. The server takes a node for lost
                after two of them.
            wait_s: How long the server may hold a question for messages.
            max_message_bytes: Of what the server sends at once; more is refused.
        """
        raise NotImplementedError

    def connect(self) -> None:
        """Connects; tries until it works or `stop` is called.

        Raises:
            EnrolmentError: If the server does not know the key.
            IdentityError: If the server's certificate is another authority's.
        """
        raise NotImplementedError

    def pull(self) -> Incoming | None:
        """Waits up to `wait_s` for a message; connects again where needed.

        Raises:
            EnrolmentError: If the node was unregistered.
            ReplacedError: If another process connected with the same key.
        """
        raise NotImplementedError

    def reply(self, incoming: Incoming, content: RecordDict) -> bool:
        """Answers a message.

        Returns:
            Whether the server took it; False where it wants none (any more): the message expired,
            its run was closed, or the server restarted and will ask again.
        """
        raise NotImplementedError

    def serve(self, handler: Handler) -> None:
        """Answers messages until `stop` is called from another thread.

        An exception of the handler is answered with its class name only: its text may hold data.
        """
        raise NotImplementedError

    def stop(self) -> None:
        """Ends `serve`, `pull` and `connect` soon, from any thread."""
        raise NotImplementedError

    def close(self) -> None:
        """Stops, tells the server, and closes the connection; a second time does nothing."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        raise NotImplementedError

    def __exit__(self, *_: object) -> None:
        raise NotImplementedError
