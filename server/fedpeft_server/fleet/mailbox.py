"""The messages to nodes and their replies, in Flower's link state.

Messages lie there with their content. Flower's own SuperLink takes the content out, and its nodes
fetch it object by object: fifteen requests a message instead of two, and ids of objects that any
node may pull, delete or occupy.
"""

import secrets
import threading
import time
from collections.abc import Collection

from flwr.app import DEFAULT_TTL, Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
from flwr.server.superlink.linkstate.utils import (
    create_message_error_unavailable_ins_message,
    create_message_error_unavailable_res_message,
)
from flwr.supercore.constant import NodeStatus
from flwr.supercore.date import now


class Mailbox:
    """What was sent to nodes, and what they answered. Safe to use from any thread."""

    def __init__(self, state: InMemoryLinkState) -> None:
        self._state = state
        self._changed = threading.Condition(state.lock)

    def message(
        self, run_id: int, content: RecordDict, kind: str, node_id: int, group: str, ttl: float
    ) -> Message:
        """Makes a message without Flower's one identity per process."""
        metadata = Metadata(
            run_id=run_id,
            message_id="",
            src_node_id=SUPERLINK_NODE_ID,
            dst_node_id=node_id,
            reply_to_message_id="",
            group_id=group,
            created_at=now().timestamp(),
            ttl=ttl,
            message_type=kind,
        )
        return make_message(metadata, content=content)

    def send(self, run_id: int, message: Message) -> str:
        """Stores a message for its node; returns its id, or "" where it cannot be stored."""
        asked = message.metadata
        sent = self.message(
            run_id,
            message.content,
            asked.message_type,
            asked.dst_node_id,
            asked.group_id,
            asked.ttl or DEFAULT_TTL,
        )
        sent.metadata.created_at = asked.created_at
        message_id = secrets.token_hex(32)  # what Flower expects of an id: the form of a SHA-256
        sent.metadata.__dict__["_message_id"] = message_id
        return self._state.store_message_ins(sent) or ""

    def collect(self, run_id: int, message_ids: Collection[str]) -> list[Message]:
        """Takes the replies that are there, and errors for messages that get none any more."""
        replies = []
        with self._state.lock:
            for message_id in message_ids:
                reply = self._reply(run_id, message_id)
                if reply is not None:
                    replies.append(reply)
                    self._forget(run_id, message_id)
        return replies

    def wait(self, run_id: int, message_ids: Collection[str], timeout_s: float) -> bool:
        """Waits until `collect` would return something: a reply, or that a message expired."""
        until = time.monotonic() + timeout_s
        with self._changed:
            while not any(self._reply(run_id, each) is not None for each in message_ids):
                left_s = until - time.monotonic()
                if left_s <= 0 or not message_ids:
                    return False
                messages = [self._state.message_ins_store[each] for each in message_ids]
                expires_s = min(map(_expires_at, messages)) - now().timestamp()
                self._changed.wait(min(left_s, max(expires_s, 0.0)))
            return True

    def withdraw(self, run_id: int, message_ids: Collection[str]) -> None:
        """Drops messages and the replies to them."""
        with self._changed:
            for message_id in message_ids:
                self._forget(run_id, message_id)
            self._changed.notify_all()

    def look_again(self) -> None:
        """Lets whoever waits see that a run was closed, or a node unregistered."""
        with self._changed:
            self._changed.notify_all()

    def has_messages(self, run_id: int, node_id: int) -> bool:
        """Whether a run has messages for a node."""
        with self._state.lock:
            return any(
                message.metadata.run_id == run_id and message.metadata.dst_node_id == node_id
                for message in self._state.message_ins_store.values()
            )

    def waiting(self, node_id: int) -> Message | None:
        """Returns the message that a node would get now."""
        with self._state.lock:
            for message in self._state.message_ins_store.values():
                metadata = message.metadata
                mine = metadata.dst_node_id == node_id and metadata.delivered_at == ""
                if mine and not _expired(message):
                    return message
        return None

    def delivered(self, node_id: int, message_id: str) -> Message | None:
        """Returns a message that this node was given and has not answered in time yet."""
        with self._state.lock:
            message = self._state.message_ins_store.get(message_id)
            if message is None or message.metadata.dst_node_id != node_id or _expired(message):
                return None
            return message

    def take(self, node_id: int) -> Message | None:
        """Gives a node its next message, once; again only after it connected anew."""
        with self._state.lock:
            message = self.waiting(node_id)
            if message is not None:
                message.metadata.delivered_at = now().isoformat()
            return message

    def keep(self, reply: Message) -> bool:
        """Stores a node's reply and wakes whoever waits for it.

        Returns:
            Whether it is stored, now or before: not a second one, nor to a message that is gone.
        """
        answered = reply.metadata.reply_to_message_id
        with self._changed:
            self._state.store_message_res(reply)
            stored = self._state.message_ins_id_to_message_res_id.get(answered)
            if stored is None or stored != reply.metadata.message_id:
                return False
            message = self._state.message_ins_store[answered]
            if message.metadata.delivered_at == "":
                message.metadata.delivered_at = now().isoformat()  # came back, and had it already
            self._changed.notify_all()
            return True

    def came_back(self, node_id: int) -> None:
        """Makes room for a node that connects anew, and gives it again what it did not answer.

        Flower refuses a node that it believes to be connected, for twice its heartbeat interval
        after it was killed, and gives a message once, even if the answer to the request was lost.
        """
        with self._state.lock:
            self._state.deactivate_node(node_id)
            for message_id, message in self._state.message_ins_store.items():
                answered = message_id in self._state.message_ins_id_to_message_res_id
                if message.metadata.dst_node_id == node_id and not answered:
                    message.metadata.delivered_at = ""

    def _message(self, run_id: int, message_id: str) -> Message | None:
        message = self._state.message_ins_store.get(message_id)
        return message if message is not None and message.metadata.run_id == run_id else None

    def _reply(self, run_id: int, message_id: str) -> Message | None:
        """A reply, an error in its place, or None where one may still come.

        Flower's own look-up gives an error for a node that is away, even if it had replied before.
        """
        message = self._message(run_id, message_id)
        if message is None:
            return create_message_error_unavailable_ins_message(message_id, run_id)
        reply_id = self._state.message_ins_id_to_message_res_id.get(message_id)
        if reply_id is not None:
            return self._state.message_res_store[reply_id]
        if _expired(message):
            return create_message_error_unavailable_ins_message(message_id, run_id)
        node = self._state.nodes.get(message.metadata.dst_node_id)
        if node is None or node.status == NodeStatus.UNREGISTERED:
            return create_message_error_unavailable_res_message(message.metadata, "node_unavail")
        return None

    def _forget(self, run_id: int, message_id: str) -> None:
        if self._message(run_id, message_id) is not None:
            self._state.delete_messages({message_id})


def _expires_at(message: Message) -> float:
    return message.metadata.created_at + message.metadata.ttl


def _expired(message: Message) -> bool:
    return _expires_at(message) <= now().timestamp()
