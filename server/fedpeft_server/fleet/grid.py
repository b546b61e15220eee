"""Flower's Grid on the embedded SuperLink: messages to nodes of one run, and their replies."""

import time
from collections.abc import Collection, Iterable

from flwr.app import DEFAULT_TTL, Message, RecordDict
from flwr.serverapp import Grid

from fedpeft_server.fleet.doorbell import Doorbell
from fedpeft_server.fleet.link import Link, Run
from fedpeft_server.fleet.mailbox import Mailbox


class FleetGrid(Grid):
    """Sends messages of one run and collects replies. Safe to use from any thread.

    A message waits until its node collects it, also while the node is away: only its time to live
    ends it. A node that comes back before it replied gets it again.
    """

    def __init__(self, link: Link, mailbox: Mailbox, doorbell: Doorbell, run_id: int) -> None:
        self._link = link
        self._mailbox = mailbox
        self._doorbell = doorbell
        self._run_id = run_id

    def set_run(self, run: Run) -> None:
        """Sends messages of another run from now on."""
        self._run_id = self._link.run(run.run_id).run_id

    @property
    def run(self) -> Run:
        """The run as Flower has it."""
        return self._link.run(self._run_id)

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
        return self._mailbox.message(
            self._run_id, content, message_type, dst_node_id, group_id, ttl or DEFAULT_TTL
        )

    def get_node_ids(self) -> list[int]:
        """Returns the nodes that are connected now."""
        return list(self._link.online())

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Hands messages to their nodes.

        Returns:
            Their ids in the same order; "" for one whose node is not registered (any more).
        """
        message_ids = []
        for message in messages:
            message_ids.append(self._mailbox.send(self._run_id, message))
            self._doorbell.ring(message.metadata.dst_node_id)
        return message_ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Returns the replies that are there, once; does not wait.

        A message that expired, or that nobody knows, has an error as its reply. Replies are mapped
        to messages by `reply.metadata.reply_to_message_id`.
        """
        return self._mailbox.collect(self._run_id, list(message_ids))

    def wait(self, message_ids: Collection[str], timeout_s: float) -> bool:
        """Waits until a reply to one of these messages can be pulled; returns whether one can."""
        return self._mailbox.wait(self._run_id, message_ids, timeout_s)

    def withdraw(self, message_ids: Iterable[str]) -> None:
        """Takes messages back: nodes that did not collect them never will, replies are refused."""
        self._mailbox.withdraw(self._run_id, list(message_ids))

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Sends messages and waits for their replies, for `timeout` seconds at most."""
        open_ids = {message_id for message_id in self.push_messages(messages) if message_id}
        until = time.monotonic() + (float("inf") if timeout is None else timeout)
        replies: list[Message] = []
        while open_ids and (left_s := until - time.monotonic()) > 0:
            self.wait(open_ids, min(left_s, 1.0))
            pulled = self.pull_messages(open_ids)
            replies += pulled
            open_ids -= {reply.metadata.reply_to_message_id for reply in pulled}
        return replies
