"""What is written is read again, and nothing else is."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.errors import FedpeftError, ProtocolError
from fedpeft.federated.messages import (
    Acceptance,
    BudgetStatement,
    OfferAnswer,
    Refusal,
    RoundPlan,
    RoundReply,
    UpdateHeader,
)
from fedpeft.wire import serde
from fedpeft.wire.v1 import rounds_pb2 as pb
from tests.wire.terms import terms

DIGEST = "a" * 64
PLAN = RoundPlan(
    terms=terms(),
    client_id="clinic",
    round=3,
    adapter_digest=DIGEST,
    num_examples=100,
    expected_batch_size=4.5,
    num_rounds=7,
    noise_multiplier=0.1 + 0.2,
)
BUDGET = BudgetStatement(
    epsilon_spent=1.25, epsilon_budget=6.0, delta=1e-5, ledger_head="4:abc", dataset=DIGEST
)
REPLY = RoundReply(
    run_id="0123456789abcdef",
    client_id="clinic",
    round=3,
    plan_digest=DIGEST,
    answer=UpdateHeader(digest=DIGEST, budget=BUDGET, train_seconds=1.5),
)
ANSWER = OfferAnswer(
    run_id="0123456789abcdef",
    client_id="clinic",
    terms_digest=DIGEST,
    answer=Acceptance(num_examples=100, dataset=DIGEST, remaining_epsilon=5.5),
)
REFUSAL = Refusal(code="budget-exceeded", message="no")


def test_an_offer_comes_back() -> None:
    assert serde.offer_from_bytes(serde.offer_to_bytes(terms())) == terms()


@pytest.mark.parametrize("noise", [None, 5e-324, 1.7e308, PLAN.noise_multiplier])
def test_a_plan_comes_back_bit_for_bit(noise: float | None) -> None:
    plan = dataclasses.replace(PLAN, noise_multiplier=noise)

    assert serde.plan_from_bytes(serde.plan_to_bytes(plan)) == plan


@pytest.mark.parametrize(
    "answer", [REPLY.answer, REFUSAL, UpdateHeader(digest=DIGEST, budget=None, train_seconds=0.0)]
)
def test_a_reply_comes_back(answer: UpdateHeader | Refusal) -> None:
    reply = dataclasses.replace(REPLY, answer=answer)

    assert serde.reply_from_bytes(serde.reply_to_bytes(reply)) == reply


@pytest.mark.parametrize("left", [None, 0.0, 5.5])
def test_an_acceptance_comes_back(left: float | None) -> None:
    """Nothing left is not the same as nothing said."""
    accepted = Acceptance(num_examples=100, dataset=DIGEST, remaining_epsilon=left)
    answer = dataclasses.replace(ANSWER, answer=accepted)

    assert serde.answer_from_bytes(serde.answer_to_bytes(answer)) == answer


@pytest.mark.parametrize(
    "change",
    [
        {"round": 0},
        {"num_examples": 0},
        {"num_rounds": 0},
        {"adapter_digest": "A" * 64},
        {"adapter_digest": "../../etc/passwd"},
        {"client_id": ""},
        {"client_id": "clinic\n"},
        {"client_id": "x" * 501},
        {"noise_multiplier": 0.0},
        {"noise_multiplier": -1.0},
        {"noise_multiplier": math.nan},
        {"noise_multiplier": math.inf},
        {"expected_batch_size": 0.0},
        {"expected_batch_size": math.nan},
    ],
)
def test_an_odd_plan_is_refused(change: dict[str, object]) -> None:
    odd = dataclasses.replace(PLAN, **change)  # type: ignore[arg-type]

    with pytest.raises(ProtocolError):
        serde.plan_from_bytes(serde.plan_to_bytes(odd))


@pytest.mark.parametrize(
    "change",
    [
        {"epsilon_spent": -0.1},
        {"epsilon_spent": math.nan},
        {"epsilon_spent": math.inf},
        {"epsilon_budget": math.nan},
        {"delta": 0.0},
        {"delta": 1.0},
        {"delta": math.nan},
        {"dataset": "short"},
        {"ledger_head": ""},
    ],
)
def test_an_odd_budget_is_refused(change: dict[str, object]) -> None:
    budget = dataclasses.replace(BUDGET, **change)  # type: ignore[arg-type]
    header = UpdateHeader(digest=DIGEST, budget=budget, train_seconds=1.0)

    with pytest.raises(ProtocolError):
        serde.reply_from_bytes(serde.reply_to_bytes(dataclasses.replace(REPLY, answer=header)))


def test_an_unknown_refusal_is_refused() -> None:
    reply = dataclasses.replace(REPLY, answer=Refusal(code="because", message="no"))

    with pytest.raises(ProtocolError, match="because"):
        serde.reply_from_bytes(serde.reply_to_bytes(reply))


@pytest.mark.parametrize("protocol", [0, serde.PROTOCOL + 1])
def test_another_protocol_is_refused(protocol: int) -> None:
    body = pb.RunOffer(terms=pb.RunTerms(protocol=protocol, terms_json=terms().to_json()))

    with pytest.raises(ProtocolError, match="upgrade the older side"):
        serde.offer_from_bytes(body.SerializeToString())


def test_terms_that_are_not_canonical_are_refused() -> None:
    """Two texts of one content would have two digests."""
    body = pb.RunOffer(
        terms=pb.RunTerms(protocol=serde.PROTOCOL, terms_json=terms().to_json() + " ")
    )

    with pytest.raises(ProtocolError, match="canonical"):
        serde.offer_from_bytes(body.SerializeToString())


def test_a_reply_without_answer_is_refused() -> None:
    with pytest.raises(ProtocolError):
        serde.reply_from_bytes(
            pb.RoundReply(run_id="r", client_id="c", round=1).SerializeToString()
        )
    with pytest.raises(ProtocolError):
        serde.answer_from_bytes(pb.OfferReply(run_id="r", client_id="c").SerializeToString())


READERS = [
    serde.offer_from_bytes,
    serde.answer_from_bytes,
    serde.plan_from_bytes,
    serde.reply_from_bytes,
]


@given(st.binary(max_size=300), st.sampled_from(READERS))
def test_arbitrary_bytes_raise_our_error_or_nothing(body: bytes, read: object) -> None:
    try:
        read(body)  # type: ignore[operator]
    except FedpeftError as error:
        assert type(error) is ProtocolError  # noqa: PT017


@given(st.data())
def test_a_damaged_message_raises_our_error_or_nothing(data: st.DataObject) -> None:
    whole = bytearray(serde.plan_to_bytes(PLAN))
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=4)):
        whole[place] = data.draw(st.integers(0, 255))
    try:
        serde.plan_from_bytes(bytes(whole))
    except FedpeftError as error:
        assert type(error) is ProtocolError  # noqa: PT017


def test_a_huge_message_is_refused_before_it_is_read() -> None:
    with pytest.raises(ProtocolError, match="at most"):
        serde.plan_from_bytes(bytes(5 * 2**20))
