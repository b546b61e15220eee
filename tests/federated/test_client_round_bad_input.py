"""What a coordinator should not have asked: refused before anything is paid for or trained."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedpeft.federated import refusals
from fedpeft.federated.messages import Refusal, RoundPlan
from fedpeft.types import tensor_digest
from tests.federated.client_rounds import PLAN_DIGEST, Client, make_client, plan_for, terms_for
from tests.tiny_models import save_bert

Adapter = dict[str, Tensor]
NAN, INFINITE = float("nan"), float("inf")


def refused(client: Client, plan: RoundPlan, adapter: Adapter) -> tuple[str, str]:
    """The code, and what the owner is told."""
    reply, update = client.round().train(plan, adapter, PLAN_DIGEST)
    assert update is None
    assert isinstance(reply.answer, Refusal)
    assert (client.notes.num_steps, client.num_reservations()) == (0, 0)
    [note] = client.notes.notes
    return reply.answer.code, note


@pytest.fixture
def client(tmp_path: Path, tiny_bert: Path) -> Client:
    return make_client(
        tmp_path / "client",
        tiny_bert,
        policy={"min_noise_multiplier": 1.0, "max_local_steps": 4, "max_rounds": 5},
    )


PLANS: dict[str, tuple[dict[str, Any], str, str]] = {
    "another client's": ({"client_id": "bank"}, refusals.PROTOCOL, "'bank', this is 'clinic'"),
    "too little noise": ({"noise_multiplier": 0.99}, refusals.POLICY, "0.99; the policy asks"),
    "no noise": ({"noise_multiplier": None}, refusals.PROTOCOL, "the noise multiplier None"),
    "noise that is no number": ({"noise_multiplier": NAN}, refusals.POLICY, "at least 1"),
    "more rows": ({"num_examples": 13}, refusals.PROTOCOL, "for 13 rows, this client has 12"),
    "fewer rows": ({"num_examples": 11}, refusals.PROTOCOL, "for 11 rows, this client has 12"),
    "a batch of more than all": ({"expected_batch_size": 12.1}, refusals.PRIVACY, "(0, 12]"),
    "a huge batch": ({"expected_batch_size": 1e300}, refusals.PRIVACY, "(0, 12]"),
    "an infinite batch": ({"expected_batch_size": INFINITE}, refusals.PRIVACY, "got inf"),
    "no batch": ({"expected_batch_size": 0.0}, refusals.PRIVACY, "got 0.0"),
    "a batch that is no number": ({"expected_batch_size": NAN}, refusals.PRIVACY, "got nan"),
    "a round after the last": ({"round": 4}, refusals.PROTOCOL, "round 4 is asked for"),
    "round 0": ({"round": 0}, refusals.PROTOCOL, "round 0 is asked for"),
    "more rounds than the run": ({"num_rounds": 4}, refusals.PROTOCOL, "4 rounds are planned"),
    "another adapter": ({"adapter_digest": "5e" * 32}, refusals.PROTOCOL, "digest differs"),
}


@pytest.mark.parametrize("case", PLANS)
def test_plans(client: Client, tiny_bert: Path, case: str) -> None:
    changed, code, told = PLANS[case]
    terms = terms_for(tiny_bert)
    adapter = client.adapter(terms)
    plan = dataclasses.replace(plan_for(terms, adapter), **changed)
    found, note = refused(client, plan, adapter)
    assert (found, told in note) == (code, True), note


TERMS: dict[str, tuple[dict[str, Any], str, str]] = {
    "more steps": ({"federation": {"local_steps": 5}}, refusals.POLICY, "at most 4"),
    "more rounds": ({"federation": {"num_rounds": 6}}, refusals.POLICY, "at most 5"),
    "no privacy": ({"privacy": {"enabled": False}}, refusals.POLICY, "allow_without_privacy"),
    "a large clip norm": ({"privacy": {"l2_clip_norm": 1e9}}, refusals.POLICY, "at most 100"),
    "seeded noise": (
        {"privacy": {"insecure_seeded_noise": True}},
        refusals.POLICY,
        "its own secret noise",
    ),
    "noise by the coordinator": (
        {"privacy": {"mechanism": "client-level"}},
        refusals.POLICY,
        "its own secret noise",
    ),
    "bfloat16": ({"model": {"precision": "bfloat16"}}, refusals.POLICY, "float32 alone"),
    "rows longer than the model": ({"model": {"max_length": 41}}, refusals.MODEL, "made for 40"),
    "an unknown base model": ({"base_digest": "5e" * 32}, refusals.POLICY, "none of the 1"),
    "a base model of another task": (
        {"model": {"task": "causal-lm"}, "labels": []},
        refusals.MODEL,
        "cannot be loaded|not the base model|hold no weights",
    ),
    "a column that is not there": ({"columns": {"text": "name"}}, refusals.DATA, "'name'"),
    "one label": ({"labels": ["warm"]}, refusals.DATA, "at least two labels"),
    "no such module": ({"adapter": {"target_modules": ["nothing"]}}, refusals.MODEL, "nothing"),
    "a rank beyond the module": ({"adapter": {"rank": 1000}}, refusals.PROTOCOL, "rank 1000"),
    "simulated clients": ({"federation": {"clients": "simulated"}}, refusals.POLICY, "remote"),
}


@pytest.mark.parametrize("case", TERMS)
def test_terms(client: Client, tiny_bert: Path, case: str) -> None:
    changed, code, told = TERMS[case]
    terms = terms_for(tiny_bert)
    adapter = client.adapter(terms)
    asked = terms_for(tiny_bert, **changed)
    found, note = refused(client, plan_for(asked, adapter), adapter)
    assert found == code, note
    assert any(words in note for words in told.split("|")), note


def renamed(adapter: Adapter) -> Adapter:
    return {name.replace("lora_a", "lora_c"): tensor for name, tensor in adapter.items()}


def without_head(adapter: Adapter) -> Adapter:
    return {name: tensor for name, tensor in adapter.items() if not name.startswith("head.")}


def with_value(value: float) -> Callable[[Adapter], Adapter]:
    def change(adapter: Adapter) -> Adapter:
        changed = {name: tensor.clone() for name, tensor in adapter.items()}
        changed["head.bias"][0] = value
        return changed

    return change


ADAPTERS: dict[str, tuple[Callable[[Adapter], Adapter], str]] = {
    "NaN": (with_value(NAN), "head.bias of the adapter holds NaN"),
    "infinite": (with_value(INFINITE), "holds NaN or infinite values"),
    "a name": (renamed, "4 tensors are missing and 4 unknown"),
    "missing tensors": (without_head, "2 tensors are missing and 0 unknown"),
    "an extra tensor": (lambda a: {**a, "x" * 500: torch.zeros(1)}, "0 tensors are missing and 1"),
    "a shape": (
        lambda a: {**a, "head.bias": torch.zeros(3)},
        "expected torch.float32 of shape (2,)",
    ),
    "a dtype": (lambda a: {**a, "head.bias": torch.zeros(2).double()}, "got torch.float64"),
    "nothing": (lambda _: {}, "10 tensors are missing"),
}


@pytest.mark.parametrize("case", ADAPTERS)
def test_adapters(client: Client, tiny_bert: Path, case: str) -> None:
    change, told = ADAPTERS[case]
    terms = terms_for(tiny_bert)
    adapter = change(client.adapter(terms))
    plan = plan_for(terms, adapter, adapter_digest=tensor_digest(adapter))
    code, note = refused(client, plan, adapter)
    assert (code, told in note) == (refusals.PROTOCOL, True), note
    assert len(note) < 400


def test_a_base_model_that_is_not_what_its_digest_says(
    client: Client, tmp_path: Path, tiny_bert: Path
) -> None:
    """Somebody put other weights where the policy looks for it."""
    [(digest, _)] = client.policy.base_models.items()
    other = save_bert(tmp_path / "other", seed=1)
    replaced = make_client(tmp_path / "replaced", other)
    allowed = {digest: next(iter(replaced.policy.base_models.values()))}
    policy = client.policy.model_copy(update={"base_models": allowed})
    terms = terms_for(tiny_bert)
    adapter = client.adapter(terms)
    victim = dataclasses.replace(client, policy=policy, models=type(client.models)(policy))
    code, note = refused(victim, plan_for(terms, adapter), adapter)
    assert code == refusals.MODEL
    assert f"expected digest {digest}" in note
