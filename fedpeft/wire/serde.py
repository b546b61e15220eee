"""Messages of a round as bytes and back: the only module that translates their protobuf by hand.

Reading is strict: a field that is missing, of another kind, or beyond its bounds raises
`ProtocolError`. What is read has been checked for form only; who said it is `envelope`'s business.
"""

import math
import re
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from fedpeft.errors import ProtocolError
from fedpeft.federated.messages import (
    Acceptance,
    BudgetStatement,
    OfferAnswer,
    Refusal,
    RoundPlan,
    RoundReply,
    UpdateHeader,
)
from fedpeft.federated.refusals import CODES
from fedpeft.federated.terms import RunTerms
from fedpeft.wire.v1 import rounds_pb2 as pb

PROTOCOL = 1
"""Version of what this fedpeft says; raised when an older peer would misunderstand it."""
OLDEST_PROTOCOL = 1
"""Oldest version that it still understands."""

_LARGEST_BODY = 4 * 2**20
_LONGEST_TEXT = 500
_DIGEST = re.compile(r"[0-9a-f]{64}")
_M = TypeVar("_M", bound=Message)


def offer_to_bytes(terms: RunTerms) -> bytes:
    """Writes the offer of a run."""
    return pb.RunOffer(terms=_terms_out(terms)).SerializeToString(deterministic=True)


def offer_from_bytes(body: bytes) -> RunTerms:
    """Reads the offer of a run.

    Raises:
        ProtocolError: If it is none, or of a protocol that is not spoken here.
    """
    return _terms_in(_parse(pb.RunOffer, body).terms)


def answer_to_bytes(answer: OfferAnswer) -> bytes:
    """Writes a client's answer to an offer."""
    out = pb.OfferReply(
        run_id=answer.run_id, client_id=answer.client_id, terms_digest=answer.terms_digest
    )
    if isinstance(answer.answer, Refusal):
        out.refused.CopyFrom(_refusal_out(answer.answer))
    else:
        out.accepted.CopyFrom(
            pb.Acceptance(
                num_examples=answer.answer.num_examples,
                dataset=answer.answer.dataset,
                remaining_epsilon=answer.answer.remaining_epsilon,
            )
        )
    return out.SerializeToString(deterministic=True)


def answer_from_bytes(body: bytes) -> OfferAnswer:
    """Reads a client's answer to an offer.

    Raises:
        ProtocolError: If it is none.
    """
    read = _parse(pb.OfferReply, body)
    answer: Acceptance | Refusal
    if read.WhichOneof("answer") == "refused":
        answer = _refusal_in(read.refused)
    elif read.WhichOneof("answer") == "accepted":
        accepted = read.accepted
        left = accepted.remaining_epsilon if accepted.HasField("remaining_epsilon") else None
        answer = Acceptance(
            num_examples=_count("num_examples", accepted.num_examples),
            dataset=_digest("dataset", accepted.dataset),
            remaining_epsilon=None if left is None else _amount("remaining_epsilon", left),
        )
    else:
        raise ProtocolError("an answer to an offer neither accepts nor refuses")
    return OfferAnswer(
        run_id=_text("run_id", read.run_id),
        client_id=_text("client_id", read.client_id),
        terms_digest=_digest("terms_digest", read.terms_digest),
        answer=answer,
    )


def plan_to_bytes(plan: RoundPlan) -> bytes:
    """Writes the plan of one client's round."""
    return pb.RoundPlan(
        terms=_terms_out(plan.terms),
        client_id=plan.client_id,
        round=plan.round,
        adapter_digest=plan.adapter_digest,
        num_examples=plan.num_examples,
        expected_batch_size=plan.expected_batch_size,
        num_rounds=plan.num_rounds,
        noise_multiplier=plan.noise_multiplier,
    ).SerializeToString(deterministic=True)


def plan_from_bytes(body: bytes) -> RoundPlan:
    """Reads the plan of one client's round.

    Raises:
        ProtocolError: If it is none, or of a protocol that is not spoken here.
    """
    read = _parse(pb.RoundPlan, body)
    noise = read.noise_multiplier if read.HasField("noise_multiplier") else None
    return RoundPlan(
        terms=_terms_in(read.terms),
        client_id=_text("client_id", read.client_id),
        round=_count("round", read.round),
        adapter_digest=_digest("adapter_digest", read.adapter_digest),
        num_examples=_count("num_examples", read.num_examples),
        expected_batch_size=_positive("expected_batch_size", read.expected_batch_size),
        num_rounds=_count("num_rounds", read.num_rounds),
        noise_multiplier=None if noise is None else _positive("noise_multiplier", noise),
    )


def reply_to_bytes(reply: RoundReply) -> bytes:
    """Writes a client's answer to a plan."""
    out = pb.RoundReply(
        run_id=reply.run_id,
        client_id=reply.client_id,
        round=reply.round,
        plan_digest=reply.plan_digest,
    )
    if isinstance(reply.answer, Refusal):
        out.refused.CopyFrom(_refusal_out(reply.answer))
        return out.SerializeToString(deterministic=True)
    out.update.digest = reply.answer.digest
    out.update.train_seconds = reply.answer.train_seconds
    budget = reply.answer.budget
    if budget is not None:
        out.update.budget.CopyFrom(
            pb.Budget(
                epsilon_spent=budget.epsilon_spent,
                epsilon_budget=budget.epsilon_budget,
                delta=budget.delta,
                ledger_head=budget.ledger_head,
                dataset=budget.dataset,
            )
        )
    return out.SerializeToString(deterministic=True)


def reply_from_bytes(body: bytes) -> RoundReply:
    """Reads a client's answer to a plan.

    Raises:
        ProtocolError: If it is none.
    """
    read = _parse(pb.RoundReply, body)
    answer: UpdateHeader | Refusal
    if read.WhichOneof("answer") == "refused":
        answer = _refusal_in(read.refused)
    elif read.WhichOneof("answer") == "update":
        budget = _budget_in(read.update.budget) if read.update.HasField("budget") else None
        answer = UpdateHeader(
            digest=_digest("digest", read.update.digest),
            budget=budget,
            train_seconds=_amount("train_seconds", read.update.train_seconds),
        )
    else:
        raise ProtocolError("an answer to a plan holds neither an update nor a refusal")
    return RoundReply(
        run_id=_text("run_id", read.run_id),
        client_id=_text("client_id", read.client_id),
        round=_count("round", read.round),
        plan_digest=_digest("plan_digest", read.plan_digest),
        answer=answer,
    )


def _terms_out(terms: RunTerms) -> pb.RunTerms:
    return pb.RunTerms(protocol=PROTOCOL, terms_json=terms.to_json())


def _terms_in(read: pb.RunTerms) -> RunTerms:
    if not OLDEST_PROTOCOL <= read.protocol <= PROTOCOL:
        raise ProtocolError(
            f"this fedpeft speaks protocols {OLDEST_PROTOCOL} to {PROTOCOL}, the message is of "
            f"{read.protocol}; upgrade the older side"
        )
    return RunTerms.from_json(read.terms_json)


def _refusal_out(refusal: Refusal) -> pb.Refusal:
    return pb.Refusal(code=refusal.code, message=refusal.message)


def _refusal_in(read: pb.Refusal) -> Refusal:
    if read.code not in CODES:
        raise ProtocolError(f"a refusal has the unknown code {read.code[:50]!r}")
    return Refusal(code=read.code, message=_text("message", read.message))


def _budget_in(read: pb.Budget) -> BudgetStatement:
    if not 0 < read.delta < 1:
        raise ProtocolError(f"delta of a budget must lie in (0, 1), got {read.delta}")
    return BudgetStatement(
        epsilon_spent=_amount("epsilon_spent", read.epsilon_spent),
        epsilon_budget=_amount("epsilon_budget", read.epsilon_budget),
        delta=read.delta,
        ledger_head=_text("ledger_head", read.ledger_head),
        dataset=_digest("dataset", read.dataset),
    )


def _parse(kind: type[_M], body: bytes) -> _M:
    if len(body) > _LARGEST_BODY:
        raise ProtocolError(f"a message of {len(body)} bytes; at most {_LARGEST_BODY} are taken")
    try:
        return kind.FromString(body)
    except DecodeError as error:
        raise ProtocolError(
            f"expected a {kind.DESCRIPTOR.name}, got bytes that are none"
        ) from error


def _text(name: str, value: str) -> str:
    if not value or len(value) > _LONGEST_TEXT or not value.isprintable():
        raise ProtocolError(f"{name} must be 1 to {_LONGEST_TEXT} printable characters")
    return value


def _digest(name: str, value: str) -> str:
    if _DIGEST.fullmatch(value) is None:
        raise ProtocolError(f"{name} must be a sha256, 64 hex digits, got {value[:80]!r}")
    return value


def _count(name: str, value: int) -> int:
    if not 1 <= value < 2**53:
        raise ProtocolError(f"{name} must be at least 1, got {value}")
    return value


def _positive(name: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise ProtocolError(f"{name} must be positive and finite, got {value}")
    return value


def _amount(name: str, value: float) -> float:
    if not 0 <= value < math.inf:
        raise ProtocolError(f"{name} must be finite and not negative, got {value}")
    return value
