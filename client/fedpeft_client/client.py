"""One client's life: it enrols, connects, answers letters, and comes back when it was cut off."""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.app import RecordDict

from fedpeft import __version__
from fedpeft.errors import EnrolmentError, IdentityError, TransportError, UnavailableError
from fedpeft.identity.credentials import Credentials
from fedpeft.remote.records import Enrolment as Enrolled
from fedpeft_client import events
from fedpeft_client.events import Emit, Event
from fedpeft_client.fleet_node import FleetNode
from fedpeft_client.flower_app import Incoming
from fedpeft_client.letters import Letters
from fedpeft_client.policy import ClientPolicy
from fedpeft_client.state_folder import Enrolment, StateFolder
from fedpeft_client.training import TrainingProcess
from fedpeft_client.trust import ServerTrust

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
_MOST_FORGOTTEN, _FORGOTTEN_SOON_S = 3, 600.0
_LOOK_S = 1.0
# Beside its tensors a letter has a body of a megabyte at most.
_ROOM_BESIDE_BYTES = 4 * 2**20


class Enrol(Protocol):
    """Asks the server to take the client in, or to say again that it did."""

    def __call__(self, node_public_key: bytes, *, token: str, version: str) -> Enrolled:
        """See `fedpeft.remote.Connection.enrol_client`."""


class Client:
    """A client that has its rows, its policy and its ledger.

    `run` blocks; `stop` may be called from any thread, or a signal handler.
    """

    def __init__(
        self,
        *,
        credentials: Credentials,
        identity: Path,
        folder: StateFolder,
        policy: ClientPolicy,
        training: TrainingProcess,
        enrol: Enrol,
        token: str,
        emit: Emit,
    ) -> None:
        """Sends nothing yet.

        Args:
            credentials: Key and certificate.
            identity: The folder that they are from.
            folder: What it keeps.
            policy: What its owner allows.
            training: Who trains.
            enrol: Asks the server.
            token: Of its invitation; empty where it is enrolled.
            emit: Is told what happens, from several threads.
        """
        self._credentials = credentials
        self._identity = identity
        self._folder = folder
        self._policy = policy
        self._training = training
        self._enrol_at = enrol
        self._token = token
        self._emit = emit
        self._stopped = threading.Event()
        self._node: FleetNode | None = None
        self._letters: Letters | None = None

    def run(self) -> None:
        """Takes part until it is stopped.

        Raises:
            RemoteError: If the server does not take it in.
            EnrolmentError: If the server forgets it as soon as it was taken in.
            ReplacedError: If another process connected with its key.
            IdentityError: If the server is not one of the federation.
        """
        num_forgotten = 0
        while not self._stopped.is_set():
            started = time.monotonic()
            self._tell(events.CONNECTING)
            enrolment = self._enrolled()
            if enrolment is None:
                return
            try:
                self._serve(enrolment)
            except EnrolmentError:
                # A server that lost its fleet takes the node in again, but not again and again.
                is_new = time.monotonic() - started < _FORGOTTEN_SOON_S
                num_forgotten = num_forgotten + 1 if is_new else 1
                if num_forgotten > _MOST_FORGOTTEN:
                    raise
                self._pause(num_forgotten)

    def stop(self) -> None:
        """Ends `run` when the round that is being trained is done and its answer sent."""
        self._stopped.set()
        node = self._node
        if node is not None:
            node.stop()

    def _enrolled(self) -> Enrolment | None:
        """Asks until there is an answer; None: stopped before."""
        attempt = 0
        while not self._stopped.is_set():
            try:
                return self._enrolled_once()
            except UnavailableError as error:
                attempt += 1
                self._tell(events.NOTE, text=f"{error}; trying again")
                self._pause(attempt)
        return None

    def _enrolled_once(self) -> Enrolment:
        key = self._folder.node_key().public_key()
        pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        said = self._enrol_at(pem, token=self._token, version=__version__)
        enrolment = Enrolment.of(said.fleet_address, said.server_certificate, said.bundle_digest)
        self._folder.enrol(enrolment)
        return enrolment

    def _serve(self, enrolment: Enrolment) -> None:
        self._letters = self._letters_of(enrolment)
        with FleetNode(
            enrolment.fleet_address,
            authority=self._credentials.authority_pem,
            key=self._folder.node_key(),
            max_message_bytes=self._policy.max_adapter_bytes + _ROOM_BESIDE_BYTES,
        ) as node:
            self._node = node
            if self._stopped.is_set():
                return
            try:
                node.connect()
            except TransportError:
                if self._stopped.is_set():
                    return
                raise
            self._tell(events.CONNECTED, fleet_address=enrolment.fleet_address)
            with self._watched(node):
                node.serve(self._answer)

    def _answer(self, incoming: Incoming) -> RecordDict:
        """Answers a letter; if its signer is not believed, the server may have a new certificate.

        It is asked over TLS which one it has, as when the client started.
        """
        assert self._letters is not None
        try:
            return self._letters.answer(incoming)
        except IdentityError:
            before = self._folder.enrolment()
            after = self._enrolled_once()
            if after == before:
                raise
            self._letters = self._letters_of(after)
            return self._letters.answer(incoming)

    def _letters_of(self, enrolment: Enrolment) -> Letters:
        trust = ServerTrust(self._credentials.authority, self._identity, enrolment.certificate_der)
        return Letters(
            self._credentials,
            trust=trust,
            bundle_digest=enrolment.bundle_digest,
            policy=self._policy,
            training=self._training,
            emit=self._emit,
        )

    @contextmanager
    def _watched(self, node: FleetNode) -> Iterator[None]:
        """Tells when the connection is lost, and when it is there again."""
        ended = threading.Event()

        def watch() -> None:
            before = True
            while not ended.wait(_LOOK_S):
                if node.connected != before:
                    before = node.connected
                    self._tell(events.CONNECTED if before else events.CONNECTING)

        watcher = threading.Thread(target=watch, name="connection", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()

    def _pause(self, attempt: int) -> None:
        longest = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(attempt, 10))
        self._stopped.wait(random.uniform(longest / 2, longest))  # noqa: S311  # no secret

    def _tell(self, kind: str, **body: object) -> None:
        self._emit(Event(kind=kind, client_id=self._credentials.name, body=body))
