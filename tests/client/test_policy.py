"""No term and no plan of a coordinator widens what a client's owner allows."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft.errors import ConfigError, PolicyError
from fedpeft.federated.messages import RoundPlan
from fedpeft.federated.terms import RunTerms
from fedpeft_client.policy import AllowedModel, ClientPolicy

BASE = "ab" * 32
OTHER = "cd" * 32
PLACE = AllowedModel(name="package:ours", revision="r1")


def terms(**sections: Any) -> RunTerms:
    content: dict[str, Any] = {
        "run_id": "0123456789abcdef",
        "name": "test",
        "model": {"name": "/theirs", "revision": "theirs", "task": "classification"},
        "adapter": {"target_modules": ["query"]},
        "federation": {"clients": "remote", "expected_batch_size": 5.0},
        "privacy": {},
        "columns": {"text": "text", "label": "label", "question": None, "answer": None},
        "labels": ["a", "b"],
        "base_digest": BASE,
    }
    for name, section in sections.items():
        content[name] = {**content[name], **section} if isinstance(section, dict) else section
    return RunTerms.model_validate(content)


def plan(terms: RunTerms, **fields: Any) -> RoundPlan:
    content: dict[str, Any] = {
        "client_id": "clinic",
        "round": 1,
        "adapter_digest": OTHER,
        "num_examples": 10,
        "expected_batch_size": 5.0,
        "num_rounds": 1,
        "noise_multiplier": 1.0 if terms.privacy.enabled else None,
    }
    return RoundPlan(terms=terms, **{**content, **fields})


POSITIVE = st.floats(1e-6, 1e6)
COUNTS = st.integers(1, 200)


@st.composite
def policies(draw: st.DrawFn) -> ClientPolicy:
    return ClientPolicy(
        min_noise_multiplier=draw(POSITIVE),
        max_target_epsilon=draw(st.none() | POSITIVE),
        max_rounds=draw(COUNTS),
        max_local_steps=draw(COUNTS),
        max_l2_clip_norm=draw(POSITIVE),
        allow_without_privacy=draw(st.booleans()),
        allow_bfloat16=draw(st.booleans()),
        max_tokens_per_batch=draw(COUNTS),
        device=draw(st.sampled_from(["auto", "cpu", "cuda"])),
        base_models=draw(st.sampled_from([{}, {BASE: PLACE}])),
    )


@st.composite
def plans(draw: st.DrawFn) -> RoundPlan:
    asked = terms(
        model={
            "precision": draw(st.sampled_from(["float32", "bfloat16"])),
            "device": draw(st.sampled_from(["auto", "cpu", "cuda"])),
            "max_tokens_per_batch": draw(COUNTS),
            "compile": draw(st.booleans()),
        },
        federation={
            "clients": draw(st.sampled_from(["remote", "simulated"])),
            "num_rounds": draw(COUNTS),
            "local_steps": draw(COUNTS),
        },
        privacy={
            "enabled": draw(st.booleans()),
            "mechanism": draw(st.sampled_from(["dp-sgd", "client-level"])),
            "target_epsilon": draw(POSITIVE),
            "l2_clip_norm": draw(POSITIVE),
            "min_noise_multiplier": draw(st.floats(0, 10)),
            "insecure_seeded_noise": draw(st.booleans()),
        },
        base_digest=draw(st.sampled_from([BASE, OTHER])),
    )
    return plan(
        asked,
        round=draw(COUNTS),
        num_rounds=draw(COUNTS),
        num_examples=draw(COUNTS),
        expected_batch_size=draw(POSITIVE),
        noise_multiplier=draw(
            st.none() | POSITIVE | st.sampled_from([math.nan, math.inf, -1.0, 0.0])
        ),
    )


def allows(policy: ClientPolicy, asked: RoundPlan) -> bool:
    try:
        policy.check_plan(asked)
    except PolicyError:
        return False
    return True


@settings(max_examples=600, deadline=None)
@given(policies(), plans())
def test_whatever_is_allowed_keeps_every_limit(policy: ClientPolicy, asked: RoundPlan) -> None:
    if not allows(policy, asked):
        return
    of = asked.terms
    assert of.federation.clients == "remote"
    assert of.federation.num_rounds <= policy.max_rounds
    assert max(asked.round, asked.num_rounds) <= policy.max_rounds
    assert of.federation.local_steps <= policy.max_local_steps
    assert of.privacy.l2_clip_norm <= policy.max_l2_clip_norm
    assert of.model.precision == "float32" or policy.allow_bfloat16
    assert of.base_digest in policy.base_models
    if asked.noise_multiplier is None:
        assert policy.allow_without_privacy
        assert not of.privacy.enabled
    else:
        assert asked.noise_multiplier >= policy.min_noise_multiplier
    if of.privacy.enabled:
        assert of.privacy.mechanism == "dp-sgd"
        assert not of.privacy.insecure_seeded_noise
        assert of.privacy.target_epsilon <= (policy.max_target_epsilon or math.inf)
    here = policy.model_config_of(of)
    assert (here.name, here.revision, here.device) == (PLACE.name, PLACE.revision, policy.device)
    assert here.max_tokens_per_batch <= policy.max_tokens_per_batch
    assert not here.compile


@settings(max_examples=300, deadline=None)
@given(plans(), plans(), st.data())
def test_a_limit_holds_whatever_else_is_asked(
    asked: RoundPlan, other: RoundPlan, data: st.DataObject
) -> None:
    """A plan that breaks one limit is refused with every other field taken from any other plan."""
    noise = data.draw(st.floats(1e-6, 0.99))
    strict = ClientPolicy(
        min_noise_multiplier=1.0,
        max_local_steps=1000,
        max_rounds=1000,
        max_l2_clip_norm=1e6,
        allow_bfloat16=True,
        base_models={BASE: PLACE},
    )
    for of in (asked.terms, other.terms):
        mixed = RoundPlan(**{**vars(other), "terms": of, "noise_multiplier": noise})
        assert not allows(strict, mixed)
        assert not allows(strict, RoundPlan(**{**vars(mixed), "noise_multiplier": None}))


def test_the_plain_case_is_allowed() -> None:
    """So that the properties above do not hold because nothing ever is."""
    policy = ClientPolicy(base_models={BASE: PLACE})
    assert allows(policy, plan(terms()))
    assert not allows(policy, plan(terms(privacy={"enabled": False})))
    assert allows(
        ClientPolicy(base_models={BASE: PLACE}, allow_without_privacy=True),
        plan(terms(privacy={"enabled": False})),
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("min_noise_multiplier = 0", "min_noise_multiplier"),
        ("min_noise_multiplier = nan", "min_noise_multiplier"),
        ("min_noise_multiplier = -1.0", "min_noise_multiplier"),
        ("max_l2_clip_norm = inf", "max_l2_clip_norm"),
        ("max_rounds = 0", "max_rounds"),
        ("max_rounds = true", "max_rounds"),
        ("max_local_steps = '5'", "max_local_steps"),
        ("min_noise = 1.0", "min_noise does not exist"),
        ("allow_without_privacy = 1", "allow_without_privacy"),
        ("bundles = ['short']", "bundles"),
        ("[base_models.abc]\nname = 'x'", "base_models"),
        (f"[base_models.{BASE}]\nname = ''", "base_models"),
        (f"[base_models.{BASE}]\nplace = 'x'", "base_models"),
        ("max_rounds = ", "not a readable TOML"),
    ],
)
def test_a_policy_that_cannot_be_read_is_no_policy(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=told) as refusal:
        ClientPolicy.read(path)
    assert str(path) in str(refusal.value)


def test_no_policy_is_no_client(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no configuration file .*policy\.toml"):
        ClientPolicy.read(tmp_path / "policy.toml")


def test_bundles(tmp_path: Path) -> None:
    any_ = ClientPolicy()
    any_.check_bundle(BASE, enrolled=BASE)
    with pytest.raises(PolicyError, match="allowed are abab"):
        any_.check_bundle(OTHER, enrolled=BASE)
    named = ClientPolicy(bundles=(OTHER,))
    named.check_bundle(OTHER, enrolled=BASE)
    with pytest.raises(PolicyError, match="allowed are cdcd"):
        named.check_bundle(BASE, enrolled=BASE)
    with pytest.raises(PolicyError):
        any_.check_bundle("", enrolled=BASE)
