"""What two manifests say differently."""

import json
from typing import Any

import pytest

from fedpeft.errors import VerificationError
from fedpeft.registry.manifest_difference import manifest_difference


def manifest(**change: Any) -> str:
    body = {
        "version": 1,
        "digest": "a" * 64,
        "artifact": "b" * 64,
        "base_model": "model",
        "base_digest": "c" * 64,
        "method": "federated",
        "parents": ["d" * 64],
        "run_id": "e" * 16,
        "round": 3,
        "participants": [
            {"client_id": "clinic", "dataset": "f" * 64, "epsilon": "1.5", "delta": "1e-05"}
        ],
        "metrics": {"accuracy": "0.75"},
        "guarantee": "intact",
        "removal": "",
        "files": {},
        "created_at": "2026-11-26T00:00:00.000000+00:00",
    }
    return json.dumps({"body": body | change, "kind": "adapter-manifest", "signature": {}})


def test_what_every_version_has_of_its_own_is_left_out() -> None:
    other = manifest(digest="1" * 64, artifact="2" * 64, created_at="later", files={"a": {}})
    assert manifest_difference(manifest(), other) == {}


def test_fields_participants_and_metrics() -> None:
    participants = [
        {"client_id": "clinic", "dataset": "f" * 64, "epsilon": "2.25", "delta": "1e-05"},
        {"client_id": "shop", "dataset": "9" * 64, "epsilon": None, "delta": None},
    ]
    other = manifest(
        method="loku",
        round=1,
        guarantee="void",
        participants=participants,
        metrics={"accuracy": "0.5", "loss": "1.25"},
    )
    assert manifest_difference(manifest(), other) == {
        "method": ("federated", "loku"),
        "round": ("3", "1"),
        "guarantee": ("intact", "void"),
        "epsilon of clinic": ("1.5", "2.25"),
        "dataset of shop": ("", "9" * 64),
        "metric accuracy": ("0.75", "0.5"),
        "metric loss": ("", "1.25"),
    }


def test_one_without_a_manifest_has_said_nothing() -> None:
    found = manifest_difference("", manifest())
    assert found["method"] == ("", "federated")
    assert manifest_difference("", "") == {}


@pytest.mark.parametrize("odd", ["{", "[]", "{}", '{"body": {"participants": 3, "metrics": {}}}'])
def test_what_is_no_manifest(odd: str) -> None:
    with pytest.raises(VerificationError, match="cannot be read"):
        manifest_difference(odd, manifest())
