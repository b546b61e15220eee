"""Private removal jobs: what they charge and when, what they release, and what they keep."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch.nn import functional

from fedpeft.dp.accounting import epsilon
from fedpeft.dp.events import DpSgdEvent
from fedpeft.dp.mechanism import DpSgd, DpSgdConfig, NoisyGradient
from fedpeft.errors import (
    AdapterError,
    BudgetError,
    DataError,
    DivergedError,
    LedgerError,
    PolicyError,
    PrivacyError,
    ProtocolError,
    RowsRemovedError,
    UnavailableError,
)
from fedpeft.federated.client_rows import ClientRows
from fedpeft.federated.client_store import ClientStore
from fedpeft.federated.tombstones import Tombstones
from fedpeft.ledger import Ledger
from fedpeft.models.base_model import load_base_model, load_tokenizer
from fedpeft.models.data_config import DataConfig
from fedpeft.models.dataset import collate
from fedpeft.models.table import Table
from fedpeft.registry.fingerprint import Fingerprint
from fedpeft.types import tensor_digest
from fedpeft.unlearning import private_job
from fedpeft.unlearning.exported import Frame
from fedpeft.unlearning.job import measure_private
from fedpeft.unlearning.objectives.inverted_hinge import inverted_hinge
from fedpeft.unlearning.order import JobOrder, JobResult, check_answers
from fedpeft.unlearning.private_job import PrivateJob
from tests.federated.client_rounds import DELTA, NUM_ROWS
from tests.tiny_models import equal_tensors
from tests.unlearning.memorised import memorise
from tests.unlearning.private_jobs import ASKED, REQUEST, Owner, make_owner


@pytest.fixture
def owner(tmp_path: Path, tiny_bert: Path) -> Owner:
    return make_owner(tmp_path / "client", tiny_bert)


def asking(owner: Owner, **asked: Any) -> JobOrder:
    """The same request with other settings of the job."""
    return owner.order.model_copy(update={"settings": {"private": ASKED | asked}})


# --- what is charged and released


def test_it_is_paid_for_and_says_so(owner: Owner) -> None:
    result, adapter, files = owner.job().run()
    [reservation] = owner.client.ledger.reservations(owner.client.rows.dataset)
    event = reservation.event
    assert isinstance(event, DpSgdEvent)
    assert (event.num_steps, event.sampling_prob) == (3, 0.5)
    assert owner.client.ledger.release_of(reservation) == result.digest
    assert result.privacy is not None
    assert result.privacy.event == event
    assert result.privacy.epsilon == epsilon([event], DELTA) <= 8.0
    assert result.privacy.epsilon_spent == owner.client.spent() == result.privacy.epsilon
    assert epsilon([event], DELTA) > 7.9, "no more noise than was asked for"
    assert (result.parent, result.digest) == (
        tensor_digest(owner.tensors),
        tensor_digest(load(adapter)),
    )
    check_answers(owner.order, JobResult.from_json(result.to_json()))
    assert "adapter_model.safetensors" in files
    before, after, expected = (
        Fingerprint.from_json(result.fingerprint[name]) for name in ("before", "after", "expected")
    )
    assert after.agrees_with(expected)
    assert not after.agrees_with(before)
    owner.client.ledger.verify()


def test_b_and_the_head_are_trained_and_nothing_else(owner: Owner) -> None:
    _, adapter, _ = owner.job().run()
    found = load(adapter)
    assert found.keys() == owner.tensors.keys()
    kept = {name for name in found if torch.equal(found[name], owner.tensors[name])}
    assert kept == {name for name in found if name.endswith("lora_a")}


def test_what_was_charged_before_is_in_what_is_stated(owner: Owner) -> None:
    ledger, rows = owner.client.ledger, owner.client.rows
    earlier = DpSgdEvent(noise_multiplier=1.5, sampling_prob=0.4, num_steps=6)
    ledger.reserve(rows.dataset, earlier, purpose="a run")
    result, _, _ = owner.job().run()
    assert result.privacy is not None
    event = result.privacy.event
    assert result.privacy.epsilon_spent == epsilon([earlier, event], DELTA)
    assert result.privacy.epsilon_spent > result.privacy.epsilon


def test_the_charge_is_durable_before_the_first_step(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    step = DpSgd.step

    def spying(self: DpSgd, to_batches: Any) -> NoisyGradient:
        with Ledger.open(owner.client.folder / "ledger.db", read_only=True) as other:
            seen.append(len(other.reservations(owner.client.rows.dataset)))
        return step(self, to_batches)

    monkeypatch.setattr(DpSgd, "step", spying)
    owner.job().run()
    assert seen == [1, 1, 1]


def test_asked_again_it_is_the_same_and_costs_nothing(owner: Owner) -> None:
    first = owner.job().run()
    spent, num_told = owner.client.spent(), len(owner.told)
    for _ in range(2):
        assert owner.job().run() == first
    assert owner.client.spent() == spent
    assert {phase for phase, _ in owner.told[num_told:]} == {"export"}


def test_two_clients_draw_other_coins(owner: Owner, tmp_path: Path, tiny_bert: Path) -> None:
    other = make_owner(tmp_path / "other", tiny_bert)
    assert owner.job().run()[0].digest != other.job().run()[0].digest


def test_the_result_says_nothing_else(owner: Owner) -> None:
    """Whatever is in the rows, these are the keys, and all but these values are the same."""
    read = json.loads(owner.job().run()[0].to_json())
    del read["digest"], read["fingerprint"], read["privacy"]
    assert read == {
        "parent": tensor_digest(owner.tensors),
        "method": "loku",
        "claim": "approximate",
        "adapter": owner.order.run_config["adapter"],
        "lost": 0.0,
        "seconds": {},
        "gate": None,
    }


def test_it_does_for_a_language_model(tmp_path: Path, tiny_llama: Path) -> None:
    owner = make_owner(tmp_path / "client", tiny_llama, task="causal-lm")
    result, adapter, _ = owner.job().run()
    check_answers(owner.order, result)
    assert not equal_tensors(load(adapter), owner.tensors)


# --- the noise and the rows


def releases(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> list[NoisyGradient]:
    """What the steps of a job release."""
    found: list[NoisyGradient] = []
    step = DpSgd.step

    def spying(self: DpSgd, to_batches: Any) -> NoisyGradient:
        released = step(self, to_batches)
        found.append(released)
        return released

    monkeypatch.setattr(DpSgd, "step", spying)
    owner.job().run()
    return found


def noise_over_charged(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> float:
    """Stddev of what is released where no row has a gradient, over what the ledger was told."""
    found = releases(owner, monkeypatch)
    [reservation] = owner.client.ledger.reservations(owner.client.rows.dataset)
    event = reservation.event
    assert isinstance(event, DpSgdEvent)
    values = torch.cat([v.flatten() for each in found for v in each.mean.values()]).double()
    assert len(values) > 5000  # so that 1 ± 0.1 is eleven standard errors
    expected = event.noise_multiplier * 1.0 / (0.5 * NUM_ROWS)
    return float(values.square().mean().sqrt()) / expected


@pytest.mark.parametrize("factor", [1.0, 2 / 3, 3 / 2])
def test_the_noise_is_what_was_charged(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    """Labels that the run does not know: no row teaches, all of it is noise."""
    owner = make_owner(tmp_path / "c", tiny_bert, labels=("hot", "mild"), asked={"num_steps": 40})

    class Planted(DpSgd):
        def __init__(self, model: Any, config: DpSgdConfig, *more: Any) -> None:
            scaled = replace(config, noise_multiplier=factor * config.noise_multiplier)
            super().__init__(model, scaled, *more)

    if factor != 1:
        monkeypatch.setattr(private_job, "DpSgd", Planted)
    found = noise_over_charged(owner, monkeypatch)
    assert (0.9 < found < 1.1) == (factor == 1), found


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_each_row_has_the_loss_of_its_kind(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Hinge if marked here, none if marked under another request, else weighted cross-entropy."""
    task = "causal-lm" if kind == "llama" else "classification"
    owner = make_owner(tmp_path / "c", request.getfixturevalue(f"tiny_{kind}"), task=task)
    owner.mark([5, 6], "another")
    losses: dict[int, float] = {}

    def looking(self: DpSgd, to_batches: Any) -> NoisyGradient:
        for rows, of_rows in to_batches(np.arange(NUM_ROWS)):
            losses.update(zip(rows.tolist(), of_rows().tolist(), strict=True))
        raise BudgetError("seen")

    monkeypatch.setattr(DpSgd, "step", looking)
    with pytest.raises(BudgetError, match="seen"):
        owner.job().run()
    assert len(losses) == NUM_ROWS
    assert losses[5] == losses[6] == 0.0
    monkeypatch.undo()
    job = owner.job()
    model = job._adapted()
    # Twice by other code: row by row, over the tokens that carry loss.
    data = owner.order.section(DataConfig, "data")
    dataset, _ = owner.client.rows.encoded_as(
        job.frame.model, data, job.frame.labels, job.frame.tokenizer
    )
    weight = 3 / (NUM_ROWS - 3)
    for row in set(range(NUM_ROWS)) - {5, 6}:
        batch = collate(dataset, [row], model.device)
        logits = model.task_model.logits(batch).detach()
        if kind == "llama":
            first = dataset.targets[row]
            ids = torch.tensor(dataset.input_ids[row])
            logits, targets = logits[0, first - 1 : -1], ids[first:]
        else:
            targets = torch.tensor([dataset.targets[row]])
        if row in (0, 3, 7):
            expected = inverted_hinge(logits, targets).mean()
        else:
            expected = weight * functional.cross_entropy(logits, targets)
        assert losses[row] == pytest.approx(float(expected), abs=1e-5), row


@pytest.mark.slow
def test_with_hardly_any_noise_it_forgets_and_keeps(
    shared_models: Path, shared_data: Path, tmp_path: Path
) -> None:
    """The direction of both terms: what noise that protects leaves of it is in the docs."""
    known = memorise(shared_models, shared_data)
    rows = [*known.rows.forget, *known.rows.retain]
    table = Table("rows", {name: [row[name] for row in rows] for name in rows[0]})
    asked = {"epsilon": 1000.0, "num_steps": 60, "sampling_prob": 1.0}
    order = known.order("loku", guarantee="charged", settings={"private": asked})
    config = dict(order.run_config) | {"privacy": {"delta": 1e-5}}
    order = order.model_copy(update={"run_config": config})
    marks = Tombstones(tmp_path / "marks")
    marks.add(order.request_id, table.take(range(len(known.rows.forget))).records())
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        dataset = ledger.register(table.records())
        ledger.set_budget(dataset, epsilon=2000.0, delta=1e-5)
        job = PrivateJob(
            order=order,
            adapter=known.blob,
            frame=Frame(
                load_base=lambda: load_base_model(known.model),
                model=known.model,
                labels=(),
                tokenizer=load_tokenizer(known.model),
            ),
            rows=ClientRows(table=table, dataset=dataset, columns=tuple(table.columns)),
            tombstones=marks,
            ledger=ledger,
            store=ClientStore(tmp_path / "removals"),
            check_noise=lambda asked, noise_multiplier: None,
        )
        _, adapter, _ = job.run()
    gate = measure_private(order, known.rows, known.blob, adapter)
    after = {m.name: m.after.value for m in gate.precisions["fp32"] if m.after is not None}
    assert after["memorization accuracy"] < 0.25  # 0.97 before
    assert after["accuracy on rows that stay"] > 0.9  # 0.97 before


def test_a_row_marked_twice_is_forgotten_by_whoever_asks_now(owner: Owner) -> None:
    owner.mark([0], "another")
    owner.job().run()


# --- budgets


@pytest.mark.parametrize(
    ("match", "budget"), [("nobody has set one", None), ("budget", 1.0)], ids=["none", "too small"]
)
def test_no_budget_no_job(
    tmp_path: Path, tiny_bert: Path, match: str, budget: float | None
) -> None:
    owner = make_owner(tmp_path / "client", tiny_bert, budget=budget)
    with pytest.raises(BudgetError, match=match):
        owner.job().run()
    assert owner.client.num_reservations() == 0
    assert not owner.told, "no step was taken"


def test_the_budget_counts_what_was_charged_before(owner: Owner) -> None:
    earlier = DpSgdEvent(noise_multiplier=0.6, sampling_prob=0.5, num_steps=20)
    owner.client.ledger.reserve(owner.client.rows.dataset, earlier, purpose="a run")
    assert 12 < owner.client.spent() < 20, owner.client.spent()
    with pytest.raises(BudgetError):
        owner.job().run()
    assert owner.client.num_reservations() == 1


def test_a_budget_at_another_delta_is_refused(owner: Owner) -> None:
    owner.client.ledger.set_budget(owner.client.rows.dataset, epsilon=20.0, delta=1e-3)
    with pytest.raises(PrivacyError, match="the two must be the same"):
        owner.job().run()
    assert owner.client.num_reservations() == 0


@pytest.mark.parametrize(
    ("match", "asked"),
    [
        ("min_noise_multiplier", {"epsilon": 19.0, "num_steps": 1, "sampling_prob": 0.02}),
        ("private.num_steps is 101", {"num_steps": 101}),
        ("private.l2_clip_norm is 200", {"l2_clip_norm": 200.0}),
    ],
)
def test_the_owners_policy_counts(owner: Owner, match: str, asked: Mapping[str, Any]) -> None:
    with pytest.raises(PolicyError, match=match):
        owner.job(order=asking(owner, **asked)).run()
    assert owner.client.num_reservations() == 0


# --- crashes, and what was done before


class Crash(BaseException):
    """Nothing in a job may catch it."""


MOMENTS = {
    "before the reservation": (0, 3),
    "after the reservation": (1, 3),
    "in the second step": (1, 3),
    "before it is stored": (1, 3),
    "after it is stored": (1, 0),
    "after the commit": (1, 0),
}


def crash_in(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def after(kind: type, name: str) -> None:
        call = getattr(kind, name)

        def crashing(*args: Any, **kwargs: Any) -> None:
            call(*args, **kwargs)
            raise Crash

        monkeypatch.setattr(kind, name, crashing)

    def before(kind: type, name: str) -> None:
        def crashing(*_: Any, **__: Any) -> None:
            raise Crash

        monkeypatch.setattr(kind, name, crashing)

    plant: dict[str, Callable[[], None]] = {
        "before the reservation": lambda: before(Ledger, "reserve"),
        "after the reservation": lambda: after(Ledger, "reserve"),
        "in the second step": lambda: after(DpSgd, "step"),
        "before it is stored": lambda: before(ClientStore, "save"),
        "after it is stored": lambda: after(ClientStore, "save"),
        "after the commit": lambda: after(Ledger, "commit"),
    }
    plant[moment]()


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_crash_anywhere_pays_once_and_releases_one(owner: Owner, moment: str) -> None:
    num_left, num_steps = MOMENTS[moment]
    with pytest.MonkeyPatch.context() as monkeypatch:
        crash_in(moment, monkeypatch)
        with pytest.raises(Crash):
            owner.job().run()
    assert owner.client.num_reservations() == num_left
    owner.told.clear()
    result, adapter, _ = owner.job().run()
    assert sum(phase == "steps" for phase, _ in owner.told) == num_steps
    [reservation] = owner.client.ledger.reservations(owner.client.rows.dataset)
    assert owner.client.ledger.release_of(reservation) == result.digest
    assert result.digest == tensor_digest(load(adapter))
    assert result.privacy is not None
    assert (
        result.privacy.epsilon_spent == owner.client.spent() == epsilon([reservation.event], DELTA)
    )
    owner.client.ledger.verify()


def test_a_request_is_released_once(owner: Owner) -> None:
    owner.job().run()
    with pytest.raises(ProtocolError, match="released once"):
        owner.job(order=asking(owner, epsilon=7.0)).run()
    other = dict(owner.tensors)
    other["head.bias"] = other["head.bias"] + 1
    with pytest.raises(ProtocolError, match="released once"):
        owner.job(adapter=bytes(save(other))).run()
    assert owner.client.num_reservations() == 1


def test_what_was_released_and_is_gone_is_not_made_again(owner: Owner) -> None:
    owner.job().run()
    [path] = (owner.client.folder / "removals" / REQUEST).glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    for order in (owner.order, asking(owner, epsilon=7.0)):
        with pytest.raises(LedgerError, match="not made again"):
            owner.job(order=order).run()
    assert owner.client.num_reservations() == 1


def test_what_was_put_in_its_place_is_not_released(owner: Owner) -> None:
    owner.job().run()
    stored = owner.store.load(REQUEST, 1)
    assert stored is not None
    changed = {name: tensor + 1 for name, tensor in stored.tensors.items()}
    owner.store.save(REQUEST, 1, replace(stored, tensors=changed))
    with pytest.raises(PrivacyError, match="needs a reservation of its own"):
        owner.job().run()


def test_another_ledger_does_not_pay_for_what_this_one_did(owner: Owner, tmp_path: Path) -> None:
    owner.job().run()
    with Ledger.open(tmp_path / "new.db") as new:
        table = owner.client.rows.table
        dataset = new.register(table.records())
        new.set_budget(dataset, epsilon=20.0, delta=DELTA)
        rows = replace(owner.client.rows, dataset=dataset)
        with pytest.raises(LedgerError, match="no reservation"):
            owner.job(ledger=new, rows=rows).run()


def test_rows_marked_meanwhile_are_not_in_what_is_released(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it is out it is made again, under the same charge; later it is not sent any more."""
    with pytest.MonkeyPatch.context() as patched:
        crash_in("after it is stored", patched)
        with pytest.raises(Crash):
            owner.job().run()
    first = owner.store.load(REQUEST, 1)
    assert first is not None
    owner.mark([9], "another")
    result, _, _ = owner.job().run()
    assert result.digest != tensor_digest(first.tensors)
    assert owner.client.num_reservations() == 1
    owner.mark([10], "a third")
    with pytest.raises(RowsRemovedError, match="not sent"):
        owner.job().run()


def test_rows_marked_in_the_middle_end_it(owner: Owner) -> None:
    def marking(phase: str, share: float) -> None:
        if phase == "steps":
            owner.mark([9], "another")

    with pytest.raises(RowsRemovedError):
        owner.job(told=marking).run()
    assert owner.store.load(REQUEST, 1) is None


def test_two_processes_do_not_work_at_once(owner: Owner) -> None:
    failed: list[str] = []

    def another(phase: str, share: float) -> None:
        if phase != "steps":
            return
        with pytest.raises(UnavailableError) as error:
            owner.job(told=lambda phase, share: None).run()
        failed.append(str(error.value))

    owner.job(told=another).run()
    assert failed
    assert owner.client.num_reservations() == 1


# --- bad input


def test_no_marked_row_no_job(tmp_path: Path, tiny_bert: Path) -> None:
    owner = make_owner(tmp_path / "client", tiny_bert, marked=())
    owner.mark([1], "another")
    with pytest.raises(DataError, match="no row here is marked"):
        owner.job().run()
    assert owner.client.num_reservations() == 0


def test_only_a_private_order_is_done(owner: Owner) -> None:
    for change in (
        {"guarantee": "void"},
        {"guarantee": "none"},
        {"method": "npo"},
        {"method": "retrain"},
    ):
        with pytest.raises(PrivacyError, match="no private job"):
            owner.job(order=owner.order.model_copy(update=change)).run()


def test_an_adapter_that_does_not_fit_costs_nothing(owner: Owner) -> None:
    odd = {name: tensor[:1] for name, tensor in owner.tensors.items()}
    nan = {name: tensor * math.nan for name, tensor in owner.tensors.items()}
    for adapter in (
        b"no safetensors",
        bytes(save({n: t.contiguous() for n, t in odd.items()})),
        bytes(save(nan)),
    ):
        with pytest.raises(AdapterError):
            owner.job(adapter=adapter).run()
    assert owner.client.num_reservations() == 0


def test_what_diverged_is_paid_for_and_not_sent(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = DpSgd.step

    def diverging(self: DpSgd, to_batches: Any) -> NoisyGradient:
        found = step(self, to_batches)
        return replace(found, mean={name: mean * math.inf for name, mean in found.mean.items()})

    with monkeypatch.context() as patched:
        patched.setattr(DpSgd, "step", diverging)
        with pytest.raises(DivergedError, match="its charge stays"):
            owner.job().run()
    with pytest.raises(DivergedError):
        owner.job().run()
    [reservation] = owner.client.ledger.reservations(owner.client.rows.dataset)
    assert owner.client.ledger.release_of(reservation) is not None
