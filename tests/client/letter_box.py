"""A client's letters with real certificates, and training in this very process."""

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding
from flwr.app import Message, RecordDict
from flwr.app.message import make_message
from flwr.app.metadata import Metadata

from fedpeft.errors import FedpeftError
from fedpeft.federated.messages import OfferAnswer, RoundPlan, RoundReply
from fedpeft.federated.terms import RunTerms
from fedpeft.identity.certificates import holder_of
from fedpeft.identity.roles import Role
from fedpeft.wire import serde
from fedpeft.wire.blobs import read_blob, to_blob
from fedpeft.wire.envelope import seal, unseal
from fedpeft.wire.records import from_record, to_record
from fedpeft_client.events import Event
from fedpeft_client.flower_app import Incoming
from fedpeft_client.letters import Letters
from fedpeft_client.training import Told
from fedpeft_client.trust import ServerTrust
from tests.federated.client_rounds import CLIENT, Client
from tests.server.holders import Holders

BUNDLE = "b0" * 32


@dataclass
class Here:
    """A training process without the process."""

    client: Client
    fails_with: FedpeftError | None = None

    def answer_offer(self, client_id: str, terms: RunTerms, told: Told) -> OfferAnswer:
        self._fail()
        return self.client.round(client_id=client_id).answer_offer(terms)

    def train(
        self, client_id: str, plan: RoundPlan, adapter: bytes, plan_digest: str, told: Told
    ) -> tuple[RoundReply, bytes | None]:
        self._fail()
        half = self.client.round(client_id=client_id)
        reply, update = half.train(plan, read_blob(adapter), plan_digest)
        return reply, None if update is None else to_blob(update)

    def _fail(self) -> None:
        if self.fails_with is not None:
            raise self.fails_with


@dataclass
class LetterBox:
    """What reaches a client, and what it answers."""

    client: Client
    folder: Path
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._told = threading.Condition()
        self.holders = Holders(self.folder)
        self.holders.server()
        self.holders.issue(CLIENT, Role.DATA_OWNER)
        self.training = Here(self.client)
        self.enrolled = self.holders.of("coordinator").certificate.public_bytes(Encoding.DER)

    def letters(self, **fields: Any) -> Letters:
        credentials = self.holders.of(CLIENT)
        trust = ServerTrust(credentials.authority, self.folder / CLIENT, self.enrolled)
        parts: dict[str, Any] = {
            "trust": trust,
            "bundle_digest": BUNDLE,
            "policy": self.client.policy,
            "training": self.training,
            "emit": self.emit,
            **fields,
        }
        return Letters(credentials, **parts)

    def offer(self, terms: RunTerms, *, by: str = "coordinator") -> RecordDict:
        return to_record(self.sealed("RunOffer", serde.offer_to_bytes(terms), by), None)

    def plan(self, plan: RoundPlan, blob: bytes | None, *, by: str = "coordinator") -> RecordDict:
        return to_record(self.sealed("RoundPlan", serde.plan_to_bytes(plan), by), blob)

    def sealed(self, kind: str, body: bytes, by: str = "coordinator") -> bytes:
        holder = self.holders.of(by)
        return seal(kind, body, holder.key, holder.certificate)

    def opened(self, kind: str, content: RecordDict) -> tuple[bytes, bytes | None]:
        """The body of an answer that this client signed, and its blob."""
        envelope, blob = from_record(content)
        authority = self.holders.of(CLIENT).authority
        body, identity = unseal(kind, envelope, lambda c, now: holder_of(c, authority, now))
        assert (identity.name, identity.roles) == (CLIENT, {Role.DATA_OWNER})
        return body, blob

    def emit(self, event: Event) -> None:
        with self._told:
            self.events.append(event)
            self._told.notify_all()

    def wait_for(self, kind: str) -> None:
        with self._told:
            assert self._told.wait_for(lambda: kind in self.kinds(), 60.0), self.events

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]


def incoming(kind: str, content: RecordDict, *, bundle: str = BUNDLE) -> Incoming:
    metadata = Metadata(1, "a" * 64, 1, 2, "", "1", 2e9, 60.0, kind)
    message: Message = make_message(metadata, content=content)
    return Incoming(message=message, bundle_hash=bundle)
