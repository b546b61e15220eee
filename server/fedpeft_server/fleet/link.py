"""The embedded SuperLink: Flower's app and its link state in memory.

With `gate` the only module of the server that imports what Flower does not publish.

Messages lie in the link state with their content. Flower's own SuperLink takes the content out, and
its nodes fetch it object by object: fifteen requests a message instead of two, and ids of objects
that any node may pull, delete or occupy.
"""

import logging
import secrets
import threading
import time
from collections.abc import Collection
from datetime import datetime
from typing import Any, cast

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)
from fastapi import FastAPI
from flwr.app import DEFAULT_TTL, Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.common.constant import (
    HEARTBEAT_MIN_INTERVAL,
    NOOP_ACCOUNT_NAME,
    NOOP_FLWR_AID,
    SUPERLINK_NODE_ID,
    TRANSPORT_TYPE_GRPC_RERE,
    Status,
)
from flwr.proto.message_pb2 import ObjectTree
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
from flwr.server.superlink.linkstate.utils import (
    create_message_error_unavailable_ins_message,
    create_message_error_unavailable_res_message,
)
from flwr.supercore.constant import (
    FLWR_IN_MEMORY_DB_NAME,
    NOOP_FEDERATION_ID,
    NodeStatus,
    TaskType,
)
from flwr.supercore.date import now
from flwr.supercore.fab import Fab
from flwr.supercore.run import Run as Run
from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
from flwr.superlink.config_loader import SuperLinkLifespanConfig
from flwr.superlink.main import create_app

from fedpeft.errors import ConfigError, IdentityError
from fedpeft_server.fleet.bundle import Bundle


class Link:
    """Nodes, runs and messages, for the server's own threads and for the gate."""

    def __init__(self) -> None:
        """Builds Flower's app; it does not listen, and starts no process and no thread."""
        flower = logging.getLogger("flwr")
        flower.handlers.clear()  # it also goes to the handlers that this process has
        flower.setLevel(logging.WARNING)
        self.app: FastAPI = create_app(_superlink_config(), cast(Any, _Unstarted))
        self.state = cast(InMemoryLinkState, self.app.state.linkstate_factory.state())
        assert isinstance(self.state, InMemoryLinkState)
        self._replied = threading.Condition(self.state.lock)

    # Nodes

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

    # Runs

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
        with self._replied:
            self._replied.notify_all()

    def run(self, run_id: int) -> Run:
        """Returns an open run.

        Raises:
            ConfigError: If there is none.
        """
        for run in self.state.get_run_info(run_ids=[run_id], statuses=[Status.RUNNING]):
            return run
        raise ConfigError(f"no run {run_id} is open")

    # Messages

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
        with self.state.lock:
            if self.state.store_message_ins(sent) is None:
                return ""
            self.state.object_store.preregister(run_id, ObjectTree(object_id=message_id))
        return message_id

    def collect(self, run_id: int, message_ids: Collection[str]) -> list[Message]:
        """Takes the replies that are there, and errors for messages that get none any more."""
        replies = []
        with self.state.lock:
            for message_id in message_ids:
                reply = self._reply(run_id, message_id)
                if reply is not None:
                    replies.append(reply)
                    self._forget(run_id, message_id)
        return replies

    def wait(self, run_id: int, message_ids: Collection[str], timeout_s: float) -> bool:
        """Waits until `collect` would return something: a reply, or that a message expired."""
        until = time.monotonic() + timeout_s
        with self._replied:
            while not any(self._reply(run_id, each) is not None for each in message_ids):
                left_s = until - time.monotonic()
                if left_s <= 0 or not message_ids:
                    return False
                messages = [self.state.message_ins_store[each] for each in message_ids]
                expires_s = min(map(_expires_at, messages)) - now().timestamp()
                self._replied.wait(min(left_s, max(expires_s, 0.0)))
            return True

    def withdraw(self, run_id: int, message_ids: Collection[str]) -> None:
        """Drops messages and the replies to them."""
        with self.state.lock:
            for message_id in message_ids:
                self._forget(run_id, message_id)

    def has_messages(self, run_id: int, node_id: int) -> bool:
        """Whether a run has messages for a node."""
        with self.state.lock:
            return any(
                message.metadata.run_id == run_id and message.metadata.dst_node_id == node_id
                for message in self.state.message_ins_store.values()
            )

    def waiting(self, node_id: int) -> Message | None:
        """Returns the message that a node would get now."""
        with self.state.lock:
            for message in self.state.message_ins_store.values():
                metadata = message.metadata
                mine = metadata.dst_node_id == node_id and metadata.delivered_at == ""
                if mine and not _expired(message):
                    return message
        return None

    def delivered(self, node_id: int, message_id: str) -> Message | None:
        """Returns a message that this node was given and has not answered in time yet."""
        with self.state.lock:
            message = self.state.message_ins_store.get(message_id)
            if message is None or message.metadata.dst_node_id != node_id or _expired(message):
                return None
            return message

    def replied(self, message_id: str) -> None:
        """Notes that a node answered, and wakes whoever waits for it."""
        with self._replied:
            message = self.state.message_ins_store.get(message_id)
            if message is not None and message.metadata.delivered_at == "":
                message.metadata.delivered_at = now().isoformat()  # came back, and had it already
            self._replied.notify_all()

    def came_back(self, node_id: int) -> None:
        """Makes room for a node that connects anew, and gives it again what it did not answer.

        Flower refuses a node that it believes to be connected, for twice its heartbeat interval
        after it was killed, and gives a message once, even if the answer to the request was lost.
        """
        with self.state.lock:
            self.state.deactivate_node(node_id)
            for message_id, message in self.state.message_ins_store.items():
                answered = message_id in self.state.message_ins_id_to_message_res_id
                if message.metadata.dst_node_id == node_id and not answered:
                    message.metadata.delivered_at = ""

    def _message(self, run_id: int, message_id: str) -> Message | None:
        message = self.state.message_ins_store.get(message_id)
        return message if message is not None and message.metadata.run_id == run_id else None

    def _reply(self, run_id: int, message_id: str) -> Message | None:
        """A reply, an error in its place, or None where one may still come.

        Flower's own look-up gives an error for a node that is away, even if it had replied before.
        """
        message = self._message(run_id, message_id)
        if message is None:
            return create_message_error_unavailable_ins_message(message_id, run_id)
        reply_id = self.state.message_ins_id_to_message_res_id.get(message_id)
        if reply_id is not None:
            return self.state.message_res_store[reply_id]
        if _expired(message):
            return create_message_error_unavailable_ins_message(message_id, run_id)
        node = self.state.nodes.get(message.metadata.dst_node_id)
        if node is None or node.status == NodeStatus.UNREGISTERED:
            return create_message_error_unavailable_res_message(message.metadata, "node_unavail")
        return None

    def _forget(self, run_id: int, message_id: str) -> None:
        if self._message(run_id, message_id) is None:
            return
        reply_id = self.state.message_ins_id_to_message_res_id.get(message_id)
        self.state.delete_messages({message_id})
        for object_id in (message_id, reply_id):
            if object_id is not None:
                self.state.object_store.delete(object_id)
        self.state.delete_sessions_in_run(run_id)  # one a reply, for objects that are never pushed


class _Unstarted:
    """Flower's lifespan starts executors, health and gRPC servers; this one starts nothing."""

    def __init__(self, *_: object) -> None:
        pass

    def startup(self) -> None:
        pass

    def shutdown(self) -> None:
        pass


def _superlink_config() -> SuperLinkLifespanConfig:
    return SuperLinkLifespanConfig(
        control_address="",
        health_server_address=None,
        host="",
        port=0,
        insecure=False,
        certificates=None,
        superexec_auth_secret=secrets.token_bytes(32),  # nobody knows it
        authn_plugin=NoOpControlAuthnPlugin(),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=True,
        fleet_api_type=TRANSPORT_TYPE_GRPC_RERE,
        fleet_api_address=None,
        simulation=False,
        ssl_ca_certfile=None,
        ssl_certfile=None,
        ssl_keyfile=None,
        database=FLWR_IN_MEMORY_DB_NAME,
        isolation="process",
        runtime_dependency_install=False,
    )


def _canonical(public_key: bytes) -> bytes:
    """The key as a node sends it."""
    try:
        key = load_pem_public_key(public_key)
    except ValueError as error:
        raise IdentityError(f"expected a public key in PEM: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise IdentityError("expected an elliptic-curve key, as `fedpeft.identity.keys` makes them")
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _expires_at(message: Message) -> float:
    return message.metadata.created_at + message.metadata.ttl


def _expired(message: Message) -> bool:
    return _expires_at(message) <= now().timestamp()
