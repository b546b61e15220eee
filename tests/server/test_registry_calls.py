"""What is in use: deployed, withdrawn, taken in from elsewhere, followed; through the SDK."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from fedpeft.errors import RemoteError
from fedpeft.identity.certificates import read_certificate
from fedpeft.identity.credentials import AUTHORITY
from fedpeft.registry.folder import read_folder
from fedpeft.registry.manifest import KIND, Manifest
from fedpeft.registry.trust import RegistryTrust
from tests.server.control_rig import Rig
from tests.server.runs import digest, export, play_round, submitted
from tests.serving.exports import minilm_config, write_export

BASE = "b" * 64


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, bytes]]:
    """Files of four adapters, none of them known to the server."""
    folder = tmp_path_factory.mktemp("exports")
    found = []
    for seed in range(4):
        write_export(
            folder / str(seed),
            minilm_config(),
            seed=seed,
            modules=("query",),
            labels=("cold", "warm"),
        )
        found.append(read_folder(folder / str(seed))[0])
    return found


def taken(rig: Rig, files: Mapping[str, bytes], key: str, **other: str) -> Any:
    settings = {"name": "from elsewhere", "base_model": "minilm", "base_digest": BASE} | other
    return rig.connect("operator").import_adapter(files, idempotency_key=key, **settings)


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(RemoteError) as refused:
        call()
    return str(refused.value.code)


def trust(rig: Rig) -> RegistryTrust:
    return RegistryTrust.of_authority(
        read_certificate(rig.holders.folder / "coordinator" / AUTHORITY)
    )


def test_from_import_to_withdrawal(
    rig: Rig, exports: list[dict[str, bytes]], tmp_path: Path
) -> None:
    operator, reader = rig.connect("operator"), rig.connect("reader")
    first, second = (taken(rig, exports[i], f"life {i}") for i in (0, 1))
    assert taken(rig, exports[0], "life 0") == first  # asked again
    manifest = Manifest.from_body(trust(rig).verify(KIND, first.manifest_json))
    assert (manifest.digest, manifest.method, manifest.participants) == (
        first.digest,
        "imported",
        (),
    )
    manifest.check_files(exports[0])

    assert operator.deploy_adapter(first.digest, "life").generation == 1
    assert reader.get_adapter("life").digest == first.digest
    assert "life" in reader.get_adapter("life").aliases
    assert code_of(lambda: operator.withdraw_adapter("life", "")) == "wrong-state"
    assert operator.deploy_adapter(second.digest[:12], "life").generation == 2
    assert operator.withdraw_adapter(first.digest, "a fault").status == "withdrawn"
    for name in ("reader", "clinic"):
        there = rig.connect(name)
        fetch = lambda there=there: there.download_adapter(first.digest, tmp_path / "none")  # noqa: E731
        assert code_of(fetch) == "withdrawn"
    assert not (tmp_path / "none").exists()
    rig.connect("auditor").download_adapter(first.digest, tmp_path / "kept")
    assert {p.name: p.read_bytes() for p in (tmp_path / "kept").iterdir()} == exports[0]
    assert code_of(lambda: operator.deploy_adapter(first.digest, "life")) == "withdrawn"
    # Not by another way either: the same tensors are the same version.
    assert code_of(lambda: taken(rig, exports[0], "life again")) == "wrong-state"


def test_what_cannot_be_deployed(rig: Rig) -> None:
    run_id = submitted(rig)
    version = play_round(rig, run_id, 1)
    operator = rig.connect("operator")
    assert code_of(lambda: operator.deploy_adapter(version, "production")) == "not-exported"
    export(rig, run_id, version, {"README.md": b"unsigned"})
    assert code_of(lambda: operator.deploy_adapter(version, "production")) == "wrong-state"
    assert code_of(lambda: operator.deploy_adapter("0" * 64, "production")) == "no-such-adapter"
    for name in ("", "Production", "deadbeef", "../x", "a b"):
        assert code_of(lambda name=name: operator.deploy_adapter(version, name)) == "invalid"


def with_weights(
    files: Mapping[str, bytes], change: Callable[[dict[str, torch.Tensor]], object]
) -> dict[str, bytes]:
    tensors = load(files["adapter_model.safetensors"])
    change(tensors)
    return {**files, "adapter_model.safetensors": save(tensors)}


def with_config(files: Mapping[str, bytes], **change: Any) -> dict[str, bytes]:
    config = json.loads(files["adapter_config.json"]) | change
    return {**files, "adapter_config.json": json.dumps(config).encode()}


def nan(tensors: dict[str, torch.Tensor]) -> None:
    next(iter(tensors.values()))[0, 0] = torch.nan


HOSTILE: dict[str, Callable[[dict[str, bytes]], dict[str, bytes]]] = {
    "nothing": lambda files: {},
    "no weights": lambda files: {k: v for k, v in files.items() if "model" not in k},
    "truncated": lambda files: {**files, "adapter_model.safetensors": b"\xff" * 100},
    "a pickle": lambda files: {**files, "adapter_model.safetensors": b"\x80\x04."},
    "NaN": lambda files: with_weights(files, nan),
    "half a pair": lambda files: with_weights(files, lambda t: t.pop(next(iter(t)))),
    "another tensor": lambda files: with_weights(files, lambda t: t.update(x=torch.ones(2))),
    "another rank": lambda files: with_config(files, r=8, lora_alpha=8),
    "rank 0": lambda files: with_config(files, r=0),
    "rslora": lambda files: with_config(files, use_rslora=True),
    "patterns": lambda files: with_config(files, alpha_pattern={"query": 1000}),
    "bias": lambda files: with_config(files, bias="all"),
    "no LoRA": lambda files: with_config(files, peft_type="IA3"),
    "deep": lambda files: {**files, "adapter_config.json": b"[" * 100_000},
    "up": lambda files: {**files, "../up": b""},
    "absolute": lambda files: {**files, "/tmp/absolute": b""},
    "hidden": lambda files: {**files, ".hidden": b""},
    "space": lambda files: {**files, "a b": b""},
    "NUL": lambda files: {**files, "a\0b": b""},
    "long": lambda files: {**files, "a" * 300: b""},
    "no name": lambda files: {**files, "": b""},
    "manifest": lambda files: {**files, "manifest.json": b"{}"},
    "many": lambda files: {**files, **{f"f{i}": b"" for i in range(20)}},
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_is_not_taken_in(rig: Rig, exports: list[dict[str, bytes]], what: str) -> None:
    before = rig.state.adapters()
    hostile = HOSTILE[what](exports[2])
    assert code_of(lambda: taken(rig, hostile, f"hostile {what}")) == "invalid"
    assert rig.state.adapters() == before


def test_base_digest_and_manifest_of_an_import(
    rig: Rig, exports: list[dict[str, bytes]], tmp_path: Path
) -> None:
    for odd in ("", "b" * 63, "B" * 64, "x" * 10_000):
        assert code_of(lambda odd=odd: taken(rig, exports[2], "odd", base_digest=odd)) == "invalid"
    of_another = taken(rig, exports[3], "another").manifest_json
    for document in ("{}", "x", of_another, of_another.replace("imported", "federated")):
        call = lambda document=document: taken(  # noqa: E731
            rig, exports[2], "manifest", manifest_json=document
        )
        assert code_of(call) == "invalid"


def test_a_data_owner_sees_its_own_part_of_a_lineage(rig: Rig) -> None:
    run_id = submitted(rig)
    version = play_round(rig, run_id, 1, ("clinic", "hospital"))

    def seen(name: str) -> dict[str, str]:
        found = {v.digest: v for v in rig.connect(name).lineage(version)}
        assert set(found) == {digest(run_id, 0), version}
        return dict(found[version].cohort)

    everybody = {c: digest("rows", c) for c in ("clinic", "hospital")}
    assert seen("operator") == seen("auditor") == everybody
    assert seen("clinic") == {"clinic": everybody["clinic"]}
    assert seen("reader") == {}


def test_a_replica_follows(rig: Rig, exports: list[dict[str, bytes]]) -> None:
    version = taken(rig, exports[2], "followed")
    reader, clinic = rig.connect("reader"), rig.connect("clinic")
    replica = "ab" * 8

    def follow(connection: Any = reader, **change: str) -> Any:
        said = {"replica_id": replica, "adapter": "", "fingerprint_json": "", "problem": ""}
        return connection.follow_alias("followed", **said | change)

    assert code_of(follow) == "no-such-alias"
    rig.connect("operator").deploy_adapter(version.digest, "followed")
    assert follow().adapter == version.digest
    follow(adapter=version.digest, fingerprint_json='{"values": []}')
    [seen] = rig.connect("auditor").list_replicas("followed")
    assert (seen.replica_id, seen.adapter, seen.operated_by) == (replica, version.digest, "reader")
    assert code_of(lambda: follow(clinic)) == "busy"  # in another's name
    assert code_of(lambda: follow(replica_id="x")) == "invalid"
    assert code_of(lambda: follow(adapter="f" * 63)) == "invalid"
    assert code_of(lambda: follow(problem="two\nlines")) == "invalid"
    assert code_of(lambda: follow(fingerprint_json="x" * (2**16 + 1))) == "invalid"
