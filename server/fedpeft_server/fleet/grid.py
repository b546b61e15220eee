"""Flower's Grid on the embedded SuperLink: messages to nodes of one run, and their replies."""

from collections.abc import Iterable

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid


class FleetGrid(Grid):
    """Sends messages of one run and collects replies. Safe to use from any thread.

    A message waits until its node collects it, also while the node is away: only its time to live
    ends it. A node that comes back before it replied gets it again.
    """

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Makes a message of this run.

        Args:
            content: From `fedpeft.wire.records.to_record`.
            message_type: "query" for the offer of a run, "train" for a round.
            dst_node_id: The node.
            group_id: The round.
            ttl: Seconds until message and reply are worth nothing; default 12 hours.
        """
        raise NotImplementedError

    def get_node_ids(self) -> list[int]:
        """Returns the nodes that are connected now."""
        raise NotImplementedError

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Hands messages to their nodes.

        Returns:
            Their ids in the same order; "" for one whose node is not registered (any more).
        """
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Returns the replies that are there, once; does not wait.

        A message that expired, or that nobody knows, has an error as its reply. Replies are mapped
        to messages by `reply.metadata.reply_to_message_id`.
        """
        raise NotImplementedError

    def wait(self, message_ids: Iterable[str], timeout_s: float) -> bool:
        """Waits until a reply to one of these messages can be pulled; returns whether one can."""
        raise NotImplementedError
