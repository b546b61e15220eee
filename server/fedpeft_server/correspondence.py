"""Signed letters out, checked answers in: what the run engine knows of keys and bytes."""

import hashlib
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from fedpeft.errors import IdentityError, ProtocolError
from fedpeft.federated.messages import OfferAnswer, RoundPlan, RoundReply
from fedpeft.federated.terms import RunTerms
from fedpeft.identity.certificates import Identity
from fedpeft.identity.roles import Role
from fedpeft.wire import serde
from fedpeft.wire.envelope import Identify, seal, unseal
from fedpeft_server.post import Answer, Letter


@dataclass(frozen=True, kw_only=True)
class Correspondence:
    """Writes letters in the server's name, and reads what claims to come from clients.

    Attributes:
        key: The server's.
        certificate: Of that key.
        identify: Checks a client's certificate, now.
    """

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    identify: Identify

    def offer(self, terms: RunTerms) -> Letter:
        """Asks a client whether it takes part."""
        body = serde.offer_to_bytes(terms)
        return Letter(kind="query", round=0, envelope=self._seal("RunOffer", body), blob=None)

    def plan(self, plan: RoundPlan, adapter: bytes) -> Letter:
        """Asks a client for a round."""
        envelope = self._seal("RoundPlan", serde.plan_to_bytes(plan))
        return Letter(kind="train", round=plan.round, envelope=envelope, blob=adapter)

    def read_offer_answer(self, client_id: str, terms: RunTerms, answer: Answer) -> OfferAnswer:
        """Reads a client's answer to an offer.

        Raises:
            ProtocolError: If it is none, or the answer to something else.
            IdentityError: If somebody else made it.
        """
        read = serde.answer_from_bytes(self._unseal("OfferReply", client_id, answer))
        _check_same(
            ("client", read.client_id, client_id),
            ("run", read.run_id, terms.run_id),
            ("terms", read.terms_digest, terms.digest),
        )
        return read

    def read_reply(self, plan: RoundPlan, answer: Answer) -> RoundReply:
        """Reads a client's answer to a plan.

        Raises:
            ProtocolError: If it is none, or the answer to something else.
            IdentityError: If somebody else made it.
        """
        read = serde.reply_from_bytes(self._unseal("RoundReply", plan.client_id, answer))
        _check_same(
            ("client", read.client_id, plan.client_id),
            ("run", read.run_id, plan.terms.run_id),
            ("round", read.round, plan.round),
            ("plan", read.plan_digest, plan_digest(plan)),
        )
        return read

    def _seal(self, kind: str, body: bytes) -> bytes:
        return seal(kind, body, self.key, self.certificate)

    def _unseal(self, kind: str, client_id: str, answer: Answer) -> bytes:
        assert answer.envelope is not None
        body, identity = unseal(kind, answer.envelope, self.identify)
        _check_client(identity, client_id)
        return body


def plan_digest(plan: RoundPlan) -> str:
    """Returns the sha256 of the plan as it is sent, hex."""
    return hashlib.sha256(serde.plan_to_bytes(plan)).hexdigest()


def _check_client(identity: Identity, client_id: str) -> None:
    if identity.name != client_id or Role.DATA_OWNER not in identity.roles:
        raise IdentityError(
            f"expected an answer that the data owner {client_id} signed, got one of {identity.name}"
        )


def _check_same(*pairs: tuple[str, object, object]) -> None:
    for what, found, expected in pairs:
        if found != expected:
            raise ProtocolError(f"an answer is for {what} {found}, expected {expected}")
