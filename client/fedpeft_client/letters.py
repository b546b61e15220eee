"""Letters from the server in, signed answers out: what a client knows of keys and bytes.

A letter that no server of the federation signed, or that cannot be read, gets no answer but that it
failed: nobody could say what the answer is to. Whatever else is odd is refused by a signed answer
with a code; see `federated.refusals`.
"""

import hashlib

from flwr.app import RecordDict

from fedpeft.errors import FedpeftError, PolicyError, ProtocolError
from fedpeft.federated.messages import (
    OfferAnswer,
    Refusal,
    RoundPlan,
    RoundReply,
    UpdateHeader,
)
from fedpeft.federated.refusals import refusal_of
from fedpeft.federated.terms import RunTerms
from fedpeft.identity.credentials import Credentials
from fedpeft.wire import serde
from fedpeft.wire.envelope import seal, unseal
from fedpeft.wire.records import from_record, to_record
from fedpeft_client import events
from fedpeft_client.events import Emit, Event
from fedpeft_client.flower_app import Incoming
from fedpeft_client.policy import ClientPolicy
from fedpeft_client.training import Note, Step, Told, TrainingProcess
from fedpeft_client.trust import ServerTrust


class Letters:
    """Answers one client's letters, one at a time."""

    def __init__(
        self,
        credentials: Credentials,
        *,
        trust: ServerTrust,
        bundle_digest: str,
        policy: ClientPolicy,
        training: TrainingProcess,
        emit: Emit,
    ) -> None:
        """Takes what the client answers with.

        Args:
            credentials: The client's; its name is that in the certificate.
            trust: Whose letters are read.
            bundle_digest: Of the app bundle that the server named at enrolment.
            policy: What the owner allows.
            training: Who trains.
            emit: Is told what happens.
        """
        self._credentials = credentials
        self._client_id = credentials.name
        self._trust = trust
        self._bundle_digest = bundle_digest
        self._policy = policy
        self._training = training
        self._emit = emit

    def answer(self, incoming: Incoming) -> RecordDict:
        """Returns the answer to a letter.

        Raises:
            ProtocolError: If it is none.
            IdentityError: If it is from nobody to be believed.
        """
        envelope, blob = from_record(incoming.message.content)
        if incoming.message_type == "query":
            terms = serde.offer_from_bytes(self._unseal("RunOffer", envelope))
            return self._answer_offer(terms, incoming.bundle_hash)
        if incoming.message_type == "train":
            body = self._unseal("RoundPlan", envelope)
            plan_digest = hashlib.sha256(body).hexdigest()
            plan = serde.plan_from_bytes(body)
            return self._reply(plan, blob, plan_digest, incoming.bundle_hash)
        raise ProtocolError(f"a letter of the kind {incoming.message_type[:40]!r}")

    def _answer_offer(self, terms: RunTerms, bundle_hash: str) -> RecordDict:
        self._tell(events.OFFERED, terms, name=terms.name, num_rounds=terms.federation.num_rounds)
        try:
            self._policy.check_bundle(bundle_hash, self._bundle_digest)
            answer = self._training.answer_offer(self._client_id, terms, self._told(terms, None))
        except FedpeftError as error:
            self._tell(events.NOTE, terms, text=str(error))
            answer = OfferAnswer(
                run_id=terms.run_id,
                client_id=self._client_id,
                terms_digest=terms.digest,
                answer=refusal_of(error),
            )
        if isinstance(answer.answer, Refusal):
            self._tell(events.REFUSED, terms, code=answer.answer.code)
        else:
            self._tell(events.ACCEPTED, terms, remaining_epsilon=answer.answer.remaining_epsilon)
        return to_record(self._seal("OfferReply", serde.answer_to_bytes(answer)), None)

    def _reply(
        self, plan: RoundPlan, blob: bytes | None, plan_digest: str, bundle_hash: str
    ) -> RecordDict:
        terms, number = plan.terms, plan.round
        self._tell(events.ROUND_STARTED, terms, number, num_rounds=terms.federation.num_rounds)
        update = None
        try:
            self._policy.check_bundle(bundle_hash, self._bundle_digest)
            adapter = self._checked_size(blob)
            reply, update = self._training.train(
                self._client_id, plan, adapter, plan_digest, self._told(terms, number)
            )
        except FedpeftError as error:
            self._tell(events.NOTE, terms, number, text=str(error))
            reply = RoundReply(
                run_id=terms.run_id,
                client_id=self._client_id,
                round=number,
                plan_digest=plan_digest,
                answer=refusal_of(error),
            )
        self._tell_outcome(terms, reply)
        return to_record(self._seal("RoundReply", serde.reply_to_bytes(reply)), update)

    def _checked_size(self, blob: bytes | None) -> bytes:
        if blob is None:
            raise ProtocolError("a plan came without its adapter")
        if len(blob) > self._policy.max_adapter_bytes:
            raise PolicyError(
                f"the adapter has {len(blob)} bytes; the policy allows at most "
                f"{self._policy.max_adapter_bytes} (max_adapter_bytes)"
            )
        return blob

    def _unseal(self, kind: str, envelope: bytes) -> bytes:
        body, _ = unseal(kind, envelope, self._trust.identify)
        return body

    def _seal(self, kind: str, body: bytes) -> bytes:
        return seal(kind, body, self._credentials.key, self._credentials.certificate)

    # --- what the owner is told

    def _tell_outcome(self, terms: RunTerms, reply: RoundReply) -> None:
        if isinstance(reply.answer, UpdateHeader):
            budget = reply.answer.budget
            self._tell(
                events.ROUND_FINISHED,
                terms,
                reply.round,
                num_rounds=terms.federation.num_rounds,
                epsilon_spent=budget and budget.epsilon_spent,
                epsilon_budget=budget and budget.epsilon_budget,
                delta=budget and budget.delta,
                train_seconds=reply.answer.train_seconds,
            )
        else:
            self._tell(events.REFUSED, terms, reply.round, code=reply.answer.code)

    def _told(self, terms: RunTerms, number: int | None) -> Told:
        def told(what: Note | Step) -> None:
            if isinstance(what, Note):
                self._tell(events.NOTE, terms, number, text=what.text)
            else:
                self._tell(events.STEP, terms, number, step=what.step, num_steps=what.num_steps)

        return told

    def _tell(self, kind: str, terms: RunTerms, number: int | None = None, **body: object) -> None:
        self._emit(
            Event(
                kind=kind,
                client_id=self._client_id,
                run_id=terms.run_id,
                round=number,
                body=body,
            )
        )
