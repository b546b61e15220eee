"""Flower as transport, the client's side: one node, its connection, its messages."""

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Self, TypeVar

from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from tenacity import (
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_delay,
    stop_any,
    stop_when_event_set,
    wait_random_exponential,
)

from fedpeft.errors import IdentityError, ProtocolError, TransportError
from fedpeft_client.fleet_link import FleetLink, NotActiveError, failed
from fedpeft_client.flower_app import BUNDLE_KEY, Handler, Incoming, client_app

logger = logging.getLogger(__name__)

_FIRST_RETRY_S, _LONGEST_RETRY_S = 0.2, 30.0
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0
_EARLY = 0.8  # of the heartbeat interval: Flower counts two of them

Answer = TypeVar("Answer")


class FleetNode:
    """A node's connection to a server.

    It connects again whenever the connection or the server is lost, and keeps telling the server
    that it is alive while a handler works for hours. A message that was not answered when the
    connection or the process was lost comes again. Several in one process do not disturb each
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
            key: The node's, whose public half is registered with the server. Use one for each
                server: what a server sees of it could be used with another one for minutes.
            heartbeat_s: Between two signs of life, 10 to 60. The server takes a node for lost
                after two of them.
            wait_s: How long the server may hold a question for messages.
            max_message_bytes: Of what the server sends at once; more is refused.

        Raises:
            ConfigError: If `address` is none.
            IdentityError: If `authority` is no certificate.
        """
        self._link = FleetLink(
            address,
            authority=authority,
            key=key,
            heartbeat_s=heartbeat_s,
            wait_s=wait_s,
            max_message_bytes=max_message_bytes,
        )
        self._heartbeat_s = heartbeat_s
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._active = False
        self._refused: IdentityError | None = None
        self._bundles: dict[int, str | None] = {}
        self._pause_s = _SHORTEST_PAUSE_S
        self._heart: threading.Thread | None = None

    @property
    def connected(self) -> bool:
        """Whether the server knew this node when it last answered."""
        return self._active

    def connect(self) -> None:
        """Connects; tries until it works or `stop` is called. A second time does nothing.

        Raises:
            EnrolmentError: If the server does not know the key.
            IdentityError: If the server's certificate is another authority's.
            TransportError: If it was stopped before it was connected.
        """
        self._retry(self._activate)
        if self._heart is None:
            self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
            self._heart.start()

    def pull(self) -> Incoming | None:
        """Waits up to `wait_s` for a message; connects again where needed.

        Returns:
            A message; None where there is none, or the node was stopped.

        Raises:
            EnrolmentError: If the node was unregistered.
            ReplacedError: If another process connected with the same key.
            ProtocolError: If a message cannot be read. It will not come again.
        """
        asked_at = time.monotonic()
        try:
            incoming = self._retry(self._pull)
        except TransportError:
            if self._stopped.is_set():
                return None
            raise
        if incoming is not None:
            self._pause_s = _SHORTEST_PAUSE_S
        elif time.monotonic() - asked_at < _LONGEST_PAUSE_S:  # the server does not hold questions
            self._stopped.wait(self._pause_s)
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        return incoming

    def reply(self, incoming: Incoming, content: RecordDict | Error) -> bool:
        """Answers a message; tries until it works, the message expires, or `stop` is called.

        Returns:
            Whether the server took it; False where it wants none (any more): the message expired,
            its run was closed, or the server restarted and will ask again.

        Raises:
            EnrolmentError: If the node was unregistered.
            ReplacedError: If another process connected with the same key.
            ProtocolError: If the server takes no such message.
            TransportError: If the server could not be reached until then.
        """
        return self._reply(incoming, Message(content, reply_to=incoming.message))

    def serve(self, handler: Handler) -> None:
        """Answers messages until `stop` is called.

        An exception of the handler is answered with its class name only: its text may hold data.

        Raises:
            EnrolmentError: If the server does not know the key, or no longer.
            ReplacedError: If another process connected with the same key.
            IdentityError: If the server's certificate is another authority's.
        """
        app = client_app(handler)
        self.connect()
        while not self._stopped.is_set():
            try:
                incoming = self.pull()
                if incoming is not None and not self._reply(incoming, self._answer(app, incoming)):
                    logger.warning("the server did not take a reply to round %s", incoming.round)
            except (ProtocolError, TransportError) as error:
                logger.warning("a message was dropped: %s", error)

    def stop(self) -> None:
        """Ends `serve`, `pull` and `connect` soon, from any thread; a running handler ends first.

        The server is told that the node leaves, but still takes the reply of a running handler.
        """
        self._stopped.set()

    def close(self) -> None:
        """Stops, tells the server, and closes the connection; a second time does nothing."""
        self.stop()
        if self._heart is not None:
            self._heart.join()
        self._link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _retry(self, call: Callable[[], Answer], *, for_s: float = float("inf")) -> Answer:
        retrying = Retrying(
            retry=retry_if_exception_type(TransportError),
            wait=wait_random_exponential(multiplier=_FIRST_RETRY_S, max=_LONGEST_RETRY_S),
            sleep=sleep_using_event(self._stopped),
            stop=stop_any(stop_when_event_set(self._stopped), stop_after_delay(for_s)),
            reraise=True,
        )
        return retrying(call)

    def _activate(self) -> None:
        with self._lock:
            if self._refused is not None:
                raise self._refused
            if not self._active:
                self._link.activate()
                self._bundles.clear()
                self._active = True

    def _pull(self) -> Incoming | None:
        self._activate()
        try:
            message = self._link.pull()
            if message is None:
                return None
            run_id = message.metadata.run_id
            if run_id not in self._bundles:
                self._bundles[run_id] = self._link.bundle_hash(run_id)
        except TransportError:
            self._active = False  # what was on its way here comes again
            raise
        bundle_hash = self._bundles[run_id]
        return None if bundle_hash is None else Incoming(message=message, bundle_hash=bundle_hash)

    def _reply(self, incoming: Incoming, reply: Message) -> bool:
        left_s = incoming.expires_at - time.time()
        return left_s > 0 and self._retry(lambda: self._push(reply), for_s=left_s)

    def _push(self, reply: Message) -> bool:
        self._activate()
        try:
            return self._link.push(reply)
        except NotActiveError:
            self._active = False
            raise

    def _answer(self, app: ClientApp, incoming: Incoming) -> Message:
        context = Context(
            run_id=incoming.run_id,
            node_id=self._link.node_id,
            node_config={},
            state=RecordDict(),
            run_config={BUNDLE_KEY: incoming.bundle_hash},
        )
        try:
            return app(incoming.message, context)
        except Exception as error:
            logger.exception("the handler failed in round %s", incoming.round)
            return Message(failed(type(error).__name__), reply_to=incoming.message)

    def _beat(self) -> None:
        wait_s = self._heartbeat_s * _EARLY
        while not self._stopped.wait(wait_s * random.uniform(0.9, 1.0)):  # noqa: S311
            wait_s = self._heartbeat_s * _EARLY
            try:
                self._activate()
                self._link.heartbeat()
            except IdentityError as error:
                self._refused = error
                return
            except NotActiveError:
                self._active, wait_s = False, _FIRST_RETRY_S
            except (TransportError, ProtocolError):
                wait_s = 1.0
        try:
            self._link.deactivate()  # which also ends an open question for messages
        except (IdentityError, TransportError, ProtocolError) as error:
            logger.info("the server was not told that the node leaves: %s", error)
