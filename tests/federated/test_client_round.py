"""A client's half of a round: what it answers, what it charges, and in which order."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from fedpeft.dp.accounting import epsilon
from fedpeft.dp.events import DpSgdEvent
from fedpeft.federated import refusals
from fedpeft.federated.messages import Acceptance, Refusal, RoundReply, UpdateHeader
from fedpeft.ledger import Head
from fedpeft.types import tensor_digest
from tests.federated.client_rounds import (
    CLIENT,
    DELTA,
    NUM_ROWS,
    PLAN_DIGEST,
    RUN,
    Client,
    Notes,
    make_client,
    plan_for,
    terms_for,
)
from tests.tiny_models import equal_tensors

EVENT = DpSgdEvent(noise_multiplier=1.5, sampling_prob=5 / NUM_ROWS, num_steps=2)


@pytest.fixture
def client(tmp_path: Path, tiny_bert: Path) -> Client:
    return make_client(tmp_path / "client", tiny_bert)


def header(reply: RoundReply) -> UpdateHeader:
    assert isinstance(reply.answer, UpdateHeader), reply.answer
    return reply.answer


def refusal(reply: RoundReply) -> str:
    assert isinstance(reply.answer, Refusal)
    return reply.answer.code


def test_an_offer_is_accepted_with_what_may_be_known(client: Client, tiny_bert: Path) -> None:
    terms = terms_for(tiny_bert)
    answer = client.round().answer_offer(terms)
    assert (answer.run_id, answer.client_id, answer.terms_digest) == (RUN, CLIENT, terms.digest)
    assert answer.answer == Acceptance(
        num_examples=NUM_ROWS, dataset=client.rows.dataset, remaining_epsilon=20.0
    )
    assert client.num_reservations() == 0
    assert client.round().answer_offer(terms) == answer


def test_a_round_is_paid_for_and_says_so(client: Client, tiny_bert: Path) -> None:
    terms = terms_for(tiny_bert)
    adapter = client.adapter(terms)
    reply, update = client.round().train(plan_for(terms, adapter), adapter, PLAN_DIGEST)
    said = header(reply)
    assert (reply.run_id, reply.client_id, reply.round) == (RUN, CLIENT, 1)
    assert reply.plan_digest == PLAN_DIGEST
    assert update is not None
    assert said.digest == tensor_digest(update)
    [reservation] = client.ledger.reservations(client.rows.dataset)
    assert reservation.event == EVENT
    assert client.ledger.release_of(reservation) == said.digest
    assert said.budget is not None
    assert said.budget.epsilon_spent == epsilon([EVENT], DELTA) == client.spent()
    assert (said.budget.epsilon_budget, said.budget.delta) == (20.0, DELTA)
    assert client.ledger.verify(Head.parse(said.budget.ledger_head)) == client.ledger.head()
    trained = {name for name in adapter if name.endswith("lora_b") or name.startswith("head.")}
    assert update.keys() == trained
    assert not any(torch.equal(update[name], adapter[name]) for name in trained)


def test_the_reservation_is_durable_before_the_first_step(client: Client, tiny_bert: Path) -> None:
    terms = terms_for(tiny_bert)
    adapter = client.adapter(terms)
    seen: list[int] = []
    client.notes = Notes(at_step=lambda step: seen.append(client.num_reservations()))
    client.round().train(plan_for(terms, adapter), adapter, PLAN_DIGEST)
    assert seen == [1, 1]


def test_a_round_asked_for_again_is_the_same_update_and_costs_nothing(
    client: Client, tiny_bert: Path
) -> None:
    terms = terms_for(tiny_bert)
    adapter = client.adapter(terms)
    plan = plan_for(terms, adapter)
    first = client.round().train(plan, adapter, PLAN_DIGEST)
    num_steps = client.notes.num_steps
    for _ in range(2):
        # Written in other bytes, as after an upgrade of the coordinator, it is still the same plan.
        reply, update = client.round().train(plan, adapter, "cd" * 32)
        assert reply == dataclasses.replace(first[0], plan_digest="cd" * 32)
        assert update is not None
        assert first[1] is not None
        assert equal_tensors(update, first[1])
    assert client.notes.num_steps == num_steps
    assert client.spent() == epsilon([EVENT], DELTA)


@pytest.mark.parametrize(
    "changed",
    [
        {"noise_multiplier": 1.6},
        {"expected_batch_size": 4.0},
        {"num_rounds": 2},
        {"adapter_digest": "5e" * 32},
    ],
)
@pytest.mark.parametrize("forget", [False, True])
def test_a_round_has_one_plan(
    client: Client, tiny_bert: Path, changed: Mapping[str, Any], forget: bool
) -> None:
    """Also where the folder forgot it: the ledger did not."""
    terms = terms_for(tiny_bert)
    adapter = client.adapter(terms)
    plan = plan_for(terms, adapter)
    client.round().train(plan, adapter, PLAN_DIGEST)
    if forget:
        for file in client.folder.rglob("*.safetensors"):
            file.unlink()
    num_steps = client.notes.num_steps
    reply, update = client.round().train(dataclasses.replace(plan, **changed), adapter, PLAN_DIGEST)
    assert (refusal(reply), update) == (refusals.PROTOCOL, None)
    assert (client.notes.num_steps, client.num_reservations()) == (num_steps, 1)


def test_every_round_pays(client: Client, tiny_bert: Path) -> None:
    terms = terms_for(tiny_bert)
    adapter = client.adapter(terms)
    for number in (1, 2, 3):
        plan = plan_for(terms, adapter, round=number)
        reply, _ = client.round().train(plan, adapter, PLAN_DIGEST)
        budget = header(reply).budget
        assert budget is not None
        assert budget.epsilon_spent == epsilon([EVENT] * number, DELTA)
    # The update of round 2 is gone, its charge is not, and it is not made again.
    assert sorted(f.name for f in client.folder.rglob("*.safetensors")) == ["00000003.safetensors"]
    reply, update = client.round().train(plan_for(terms, adapter, round=2), adapter, PLAN_DIGEST)
    assert (refusal(reply), update) == (refusals.LEDGER, None)
    assert client.num_reservations() == 3


def test_no_budget_no_training(tmp_path: Path, tiny_bert: Path) -> None:
    terms = terms_for(tiny_bert)
    poor = make_client(tmp_path / "poor", tiny_bert, budget=0.5)
    adapter = poor.adapter(terms)
    reply, update = poor.round().train(plan_for(terms, adapter), adapter, PLAN_DIGEST)
    assert (refusal(reply), update) == (refusals.BUDGET, None)
    assert (poor.notes.num_steps, poor.num_reservations()) == (0, 0)
    none = make_client(tmp_path / "none", tiny_bert, budget=None)
    reply, _ = none.round().train(plan_for(terms, adapter), adapter, PLAN_DIGEST)
    assert refusal(reply) == refusals.BUDGET
    answer = none.round().answer_offer(terms).answer
    assert isinstance(answer, Refusal)
    assert answer.code == refusals.BUDGET


def test_the_last_slice_is_not_left_over_for_a_second_offer(
    tmp_path: Path, tiny_bert: Path
) -> None:
    client = make_client(tmp_path / "client", tiny_bert, budget=epsilon([EVENT], DELTA))
    terms = terms_for(tiny_bert)
    adapter = client.adapter(terms)
    client.round().train(plan_for(terms, adapter), adapter, PLAN_DIGEST)
    answer = client.round().answer_offer(terms).answer
    assert isinstance(answer, Refusal)
    assert answer.code == refusals.BUDGET


def test_a_budget_at_another_delta_is_refused(client: Client, tiny_bert: Path) -> None:
    terms = terms_for(tiny_bert, privacy={"delta": 0.01})
    answer = client.round().answer_offer(terms).answer
    assert isinstance(answer, Refusal)
    assert answer.code == refusals.PRIVACY
    adapter = client.adapter(terms)
    reply, _ = client.round().train(plan_for(terms, adapter), adapter, PLAN_DIGEST)
    assert (refusal(reply), client.num_reservations()) == (refusals.PRIVACY, 0)


def test_what_diverged_is_paid_for_and_never_made_again(client: Client, tiny_bert: Path) -> None:
    terms = terms_for(tiny_bert, federation={"learning_rate": 1e38}, privacy={"l2_clip_norm": 50.0})
    adapter = client.adapter(terms)
    for _ in range(2):
        reply, update = client.round().train(plan_for(terms, adapter), adapter, PLAN_DIGEST)
        assert (refusal(reply), update) == (refusals.DIVERGED, None)
    [reservation] = client.ledger.reservations(client.rows.dataset)
    assert client.ledger.release_of(reservation) is not None
    assert client.notes.num_steps == 2


def test_without_privacy_the_owner_must_allow_it(tmp_path: Path, tiny_bert: Path) -> None:
    terms = terms_for(tiny_bert, privacy={"enabled": False})
    client = make_client(tmp_path / "strict", tiny_bert)
    adapter = client.adapter(terms)
    reply, _ = client.round().train(plan_for(terms, adapter), adapter, PLAN_DIGEST)
    assert refusal(reply) == refusals.POLICY
    open_ = make_client(
        tmp_path / "open", tiny_bert, budget=None, policy={"allow_without_privacy": True}
    )
    assert isinstance(open_.round().answer_offer(terms).answer, Acceptance)
    reply, update = open_.round().train(plan_for(terms, adapter), adapter, PLAN_DIGEST)
    assert header(reply).budget is None
    again, same = open_.round().train(plan_for(terms, adapter), adapter, PLAN_DIGEST)
    assert again == reply
    assert update is not None
    assert same is not None
    assert equal_tensors(update, same)
    assert open_.num_reservations() == 0


def test_terms_never_change(client: Client, tiny_bert: Path) -> None:
    terms = terms_for(tiny_bert)
    client.round().answer_offer(terms)
    other = terms_for(tiny_bert, federation={"learning_rate": 0.25})
    answer = client.round().answer_offer(other).answer
    assert isinstance(answer, Refusal)
    assert answer.code == refusals.PROTOCOL
    adapter = client.adapter(other)
    reply, _ = client.round().train(plan_for(other, adapter), adapter, PLAN_DIGEST)
    assert (refusal(reply), client.num_reservations()) == (refusals.PROTOCOL, 0)


def test_other_rows_of_the_same_number_pay_for_themselves(
    client: Client, tmp_path: Path, tiny_bert: Path
) -> None:
    """An update that was made before is returned, and its budget is that of the rows it saw."""
    terms = terms_for(tiny_bert)
    adapter = client.adapter(terms)
    first, _ = client.round().train(plan_for(terms, adapter), adapter, PLAN_DIGEST)
    table = client.rows.table
    lines = [f"{text} today" for text in table.columns["text"]]
    changed = dataclasses.replace(table, columns={**table.columns, "text": lines})
    dataset = client.ledger.register(changed.records())
    client.ledger.set_budget(dataset, epsilon=9.0, delta=DELTA)
    client.rows = dataclasses.replace(client.rows, table=changed, dataset=dataset)
    again, _ = client.round().train(plan_for(terms, adapter), adapter, PLAN_DIGEST)
    before, after = header(first), header(again)
    assert after.digest == before.digest
    assert before.budget is not None
    assert after.budget == dataclasses.replace(before.budget, ledger_head=str(client.ledger.head()))
    reply, _ = client.round().train(plan_for(terms, adapter, round=2), adapter, PLAN_DIGEST)
    budget = header(reply).budget
    assert budget is not None
    assert (budget.dataset, budget.epsilon_budget) == (dataset, 9.0)
    assert budget.epsilon_spent == epsilon([EVENT], DELTA)


@pytest.mark.parametrize("damage", ["cut", "gone", "other"])
def test_a_released_update_that_is_no_longer_whole_is_not_made_again(
    client: Client, tiny_bert: Path, damage: str
) -> None:
    terms = terms_for(tiny_bert)
    adapter = client.adapter(terms)
    plan = plan_for(terms, adapter)
    client.round().train(plan, adapter, PLAN_DIGEST)
    [file] = client.folder.rglob("*.safetensors")
    content = file.read_bytes()
    if damage == "cut":
        file.write_bytes(content[:-4])
    elif damage == "gone":
        file.unlink()
    else:
        file.write_bytes(content[:-4] + bytes(4))
    num_steps = client.notes.num_steps
    reply, update = client.round().train(plan, adapter, PLAN_DIGEST)
    assert (refusal(reply), update) == (refusals.LEDGER, None)
    assert (client.notes.num_steps, client.num_reservations()) == (num_steps, 1)


def test_an_update_put_in_place_of_a_released_one_is_not_sent(
    client: Client, tiny_bert: Path
) -> None:
    terms = terms_for(tiny_bert)
    adapter = client.adapter(terms)
    plan = plan_for(terms, adapter)
    client.round().train(plan, adapter, PLAN_DIGEST)
    stored = client.store.load(RUN, 1)
    assert stored is not None
    forged = {name: tensor + 1 for name, tensor in stored.tensors.items()}
    client.store.save(RUN, 1, dataclasses.replace(stored, tensors=forged))
    reply, update = client.round().train(plan, adapter, PLAN_DIGEST)
    assert (refusal(reply), update) == (refusals.PRIVACY, None)


def test_another_ledger_does_not_pay_for_what_this_one_did(
    client: Client, tmp_path: Path, tiny_bert: Path
) -> None:
    terms = terms_for(tiny_bert)
    adapter = client.adapter(terms)
    plan = plan_for(terms, adapter)
    client.round().train(plan, adapter, PLAN_DIGEST)
    stranger = make_client(tmp_path / "stranger", tiny_bert)
    reply, update = client.round(ledger=stranger.ledger).train(plan, adapter, PLAN_DIGEST)
    assert (refusal(reply), update) == (refusals.LEDGER, None)


def test_two_processes_do_not_work_in_one_folder(client: Client, tiny_bert: Path) -> None:
    terms = terms_for(tiny_bert)
    adapter = client.adapter(terms)
    replies: list[RoundReply] = []

    def ask_another(step: int) -> None:
        other = client.round(watcher=Notes())
        replies.append(other.train(plan_for(terms, adapter), adapter, PLAN_DIGEST)[0])

    client.notes = Notes(at_step=ask_another)
    reply, _ = client.round().train(plan_for(terms, adapter), adapter, PLAN_DIGEST)
    header(reply)
    assert [refusal(other) for other in replies] == [refusals.LOST] * 2
    assert client.num_reservations() == 1


class Crash(BaseException):
    """Nothing in a round may catch it."""


def raising(*_: object, **__: object) -> None:
    raise Crash


def crash_in(client: Client, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next round dies there."""
    ledger, store = type(client.ledger), type(client.store)
    reserve, commit, save = ledger.reserve, ledger.commit, store.save

    def after(call: Callable[..., Any]) -> Callable[..., None]:
        def crashing(*args: Any, **kwargs: Any) -> None:
            call(*args, **kwargs)
            raise Crash

        return crashing

    if moment == "before the reservation":
        monkeypatch.setattr(ledger, "reserve", raising)
    elif moment == "after the reservation":
        monkeypatch.setattr(ledger, "reserve", after(reserve))
    elif moment == "in the second step":
        client.notes = Notes(at_step=lambda step: raising() if step == 2 else None)
    elif moment == "before the update is stored":
        monkeypatch.setattr(store, "save", raising)
    elif moment == "after the update is stored":
        monkeypatch.setattr(store, "save", after(save))
    else:
        monkeypatch.setattr(ledger, "commit", after(commit))


MOMENTS = {
    "before the reservation": (0, 2),
    "after the reservation": (1, 2),
    "in the second step": (1, 2),
    "before the update is stored": (1, 2),
    "after the update is stored": (1, 0),
    "after the commit": (1, 0),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_crash_anywhere_pays_once_and_sends_one_update(
    client: Client, tiny_bert: Path, moment: str
) -> None:
    """Moment → reservations that the crash leaves, and steps that the next attempt then needs."""
    terms = terms_for(tiny_bert)
    adapter = client.adapter(terms)
    plan = plan_for(terms, adapter)
    num_left, num_steps = MOMENTS[moment]
    with pytest.MonkeyPatch.context() as monkeypatch:
        crash_in(client, moment, monkeypatch)
        with pytest.raises(Crash):
            client.round().train(plan, adapter, PLAN_DIGEST)
    assert client.num_reservations() == num_left
    client.notes = Notes()
    reply, update = client.round().train(plan, adapter, PLAN_DIGEST)
    assert client.notes.num_steps == num_steps
    [reservation] = client.ledger.reservations(client.rows.dataset)
    assert update is not None
    assert client.ledger.release_of(reservation) == tensor_digest(update) == header(reply).digest
    assert client.spent() == epsilon([EVENT], DELTA)
    client.ledger.verify()


def test_a_reservation_of_another_event_is_not_gone_on_with(
    client: Client, tiny_bert: Path
) -> None:
    """The rows changed between reservation and training: what was paid for were the old ones."""
    terms = terms_for(tiny_bert)
    adapter = client.adapter(terms)
    plan = plan_for(terms, adapter)
    with pytest.MonkeyPatch.context() as monkeypatch:
        crash_in(client, "in the second step", monkeypatch)
        with pytest.raises(Crash):
            client.round().train(plan, adapter, PLAN_DIGEST)
    table = client.rows.table
    changed = dataclasses.replace(
        table, columns={**table.columns, "text": ["ice today", *table.columns["text"][1:]]}
    )
    dataset = client.ledger.register(changed.records())
    client.ledger.set_budget(dataset, epsilon=20.0, delta=DELTA)
    client.rows = dataclasses.replace(client.rows, table=changed, dataset=dataset)
    client.notes = Notes()
    header(client.round().train(plan, adapter, PLAN_DIGEST)[0])
    assert client.num_reservations() == 2
    assert client.spent() == epsilon([EVENT] * 2, DELTA)
