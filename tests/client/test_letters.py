"""Whose letters a client reads, what it answers, and what it does not say."""

import dataclasses
import hashlib
from pathlib import Path

import pytest
from flwr.app import RecordDict

from fedpeft.errors import IdentityError, PolicyError, ProtocolError, WorkerLostError
from fedpeft.federated import refusals
from fedpeft.federated.messages import Acceptance, Refusal, UpdateHeader
from fedpeft.identity.authority import REVOKED
from fedpeft.identity.roles import Role
from fedpeft.types import tensor_digest
from fedpeft.wire import serde
from fedpeft.wire.blobs import read_blob, to_blob
from fedpeft.wire.records import from_record, to_record
from fedpeft_client import events
from tests.client.letter_box import LetterBox, incoming
from tests.federated.client_rounds import CLIENT, make_client, plan_for, terms_for


@pytest.fixture
def box(tmp_path: Path, tiny_bert: Path) -> LetterBox:
    client = make_client(tmp_path / "client", tiny_bert)
    return LetterBox(client, tmp_path / "holders")


def test_an_offer_and_a_round(box: LetterBox, tiny_bert: Path) -> None:
    terms = terms_for(tiny_bert)
    answered = box.letters().answer(incoming("query", box.offer(terms)))
    body, blob = box.opened("OfferReply", answered)
    answer = serde.answer_from_bytes(body)
    assert blob is None
    assert isinstance(answer.answer, Acceptance)
    assert (answer.client_id, answer.terms_digest) == (CLIENT, terms.digest)

    adapter = box.client.adapter(terms)
    plan = plan_for(terms, adapter)
    letter = box.plan(plan, to_blob(adapter))
    body, blob = box.opened("RoundReply", box.letters().answer(incoming("train", letter)))
    reply = serde.reply_from_bytes(body)
    assert isinstance(reply.answer, UpdateHeader)
    assert reply.plan_digest == hashlib.sha256(serde.plan_to_bytes(plan)).hexdigest()
    assert blob is not None
    assert tensor_digest(read_blob(blob)) == reply.answer.digest
    assert box.kinds() == [
        events.OFFERED,
        events.ACCEPTED,
        events.ROUND_STARTED,
        events.ROUND_FINISHED,
    ]
    assert box.events[-1].body["epsilon_spent"] == box.client.spent()


def test_letters_of_nobody_to_be_believed_are_not_answered(
    box: LetterBox, tmp_path: Path, tiny_bert: Path
) -> None:
    terms = terms_for(tiny_bert)
    box.holders.issue("bank", Role.DATA_OWNER)
    box.holders.issue("operator", Role.OPERATOR)
    stranger = LetterBox(box.client, tmp_path / "elsewhere")
    envelope, _ = from_record(box.offer(terms))
    changed = bytearray(envelope)
    changed[envelope.index(b'"test"') + 1] ^= 1
    adapter = box.client.adapter(terms)
    plan = plan_for(terms, adapter)
    plan_as_offer = box.sealed("RoundPlan", serde.offer_to_bytes(terms))
    for letter, told in (
        (box.offer(terms, by="bank"), "another certificate"),
        (box.offer(terms, by=CLIENT), "another certificate"),
        (box.offer(terms, by="operator"), "another certificate"),
        (stranger.offer(terms), "another certificate"),
        (to_record(bytes(changed), None), "not signed by coordinator, or was altered"),
        (to_record(plan_as_offer, None), "not signed by coordinator, or was altered"),
    ):
        with pytest.raises(IdentityError, match=told):
            box.letters().answer(incoming("query", letter))
    with pytest.raises(IdentityError, match="another certificate"):
        box.letters().answer(incoming("train", box.plan(plan, to_blob(adapter), by="bank")))
    assert box.events == []
    assert box.client.num_reservations() == 0


def test_with_a_revocation_list_other_servers_are_believed_until_they_are_on_it(
    box: LetterBox, tiny_bert: Path
) -> None:
    terms = terms_for(tiny_bert)
    box.holders.issue("other", Role.SERVER, hosts=["localhost"])
    box.holders.issue("bank", Role.DATA_OWNER)
    crl = box.folder / CLIENT / REVOKED
    letter = incoming("query", box.offer(terms, by="other"))
    with pytest.raises(IdentityError, match="another certificate"):
        box.letters().answer(letter)
    crl.write_bytes(box.holders.revocations.read_bytes())
    box.opened("OfferReply", box.letters().answer(letter))
    with pytest.raises(IdentityError, match="'bank', who is no server"):
        box.letters().answer(incoming("query", box.offer(terms, by="bank")))
    box.holders.authority.revoke(box.holders.serial("other"))
    crl.write_bytes(box.holders.revocations.read_bytes())
    with pytest.raises(IdentityError, match="was revoked"):
        box.letters().answer(letter)
    box.opened("OfferReply", box.letters().answer(incoming("query", box.offer(terms))))
    # Its own certificate on the list counts as well, and a list that cannot be read lets nobody in.
    box.holders.authority.revoke(box.holders.serial("coordinator"))
    crl.write_bytes(box.holders.revocations.read_bytes())
    with pytest.raises(IdentityError, match="was revoked"):
        box.letters().answer(incoming("query", box.offer(terms)))
    crl.write_bytes(b"")
    with pytest.raises(IdentityError, match="revocation list"):
        box.letters().answer(incoming("query", box.offer(terms)))


def test_what_cannot_be_read_is_not_answered(box: LetterBox, tiny_bert: Path) -> None:
    terms = terms_for(tiny_bert)
    letter = box.offer(terms)
    for kind, content in (
        ("evaluate", letter),
        ("query", RecordDict()),
        ("query", to_record(b"no envelope", None)),
        ("query", to_record(box.sealed("RunOffer", b"\xff no message"), None)),
        ("train", to_record(box.sealed("RoundPlan", b""), b"blob")),
    ):
        with pytest.raises(ProtocolError):
            box.letters().answer(incoming(kind, content))
    assert box.events == []


def refused(box: LetterBox, content: RecordDict, **fields: object) -> str:
    """The code of a signed refusal, which says nothing but its fixed sentence."""
    answered = box.letters(**fields).answer(incoming("train", content))
    body, blob = box.opened("RoundReply", answered)
    reply = serde.reply_from_bytes(body)
    assert isinstance(reply.answer, Refusal)
    assert blob is None
    assert str(box.folder.parent).encode() not in body
    assert box.events[-1].kind == events.REFUSED
    return reply.answer.code


def test_whatever_else_is_odd_is_refused_by_a_signed_answer(
    box: LetterBox, tiny_bert: Path
) -> None:
    terms = terms_for(tiny_bert)
    adapter = box.client.adapter(terms)
    plan, blob = plan_for(terms, adapter), to_blob(adapter)
    assert refused(box, box.plan(plan, None)) == refusals.PROTOCOL
    tight = box.client.policy.model_copy(update={"max_adapter_bytes": len(blob) - 1})
    assert refused(box, box.plan(plan, blob), policy=tight) == refusals.POLICY
    assert f"the adapter has {len(blob)} bytes" in box.events[-2].body["text"]
    other = dataclasses.replace(plan, client_id="bank")
    assert refused(box, box.plan(other, blob)) == refusals.PROTOCOL
    answered = box.letters().answer(incoming("train", box.plan(plan, blob), bundle="0" * 64))
    body, _ = box.opened("RoundReply", answered)
    assert serde.reply_from_bytes(body).answer == refusals.refusal_of(PolicyError())
    box.training.fails_with = WorkerLostError(f"its process ended in {box.folder}")
    assert refused(box, box.plan(plan, blob)) == refusals.LOST
    assert box.client.num_reservations() == 0


def test_an_offer_of_another_bundle_is_refused(box: LetterBox, tiny_bert: Path) -> None:
    letter = incoming("query", box.offer(terms_for(tiny_bert)), bundle="0" * 64)
    body, _ = box.opened("OfferReply", box.letters().answer(letter))
    answer = serde.answer_from_bytes(body).answer
    assert isinstance(answer, Refusal)
    assert answer.code == refusals.POLICY


def test_a_captured_letter_played_again_gets_the_same_update(
    box: LetterBox, tiny_bert: Path
) -> None:
    """Nothing is trained, nothing is paid for, nothing new is said."""
    terms = terms_for(tiny_bert)
    adapter = box.client.adapter(terms)
    letter = incoming("train", box.plan(plan_for(terms, adapter), to_blob(adapter)))
    first = box.opened("RoundReply", box.letters().answer(letter))
    assert box.opened("RoundReply", box.letters().answer(letter)) == first
    assert (box.client.notes.num_steps, box.client.num_reservations()) == (2, 1)
