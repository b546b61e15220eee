"""examples/removal.sh as it stands: trained, deployed, served, removed, verified; in small."""

import json
from pathlib import Path

import pytest

from fedpeft.identity.certificates import read_certificate
from fedpeft.registry.trust import RegistryTrust
from fedpeft.unlearning.receipt import verify_receipt
from tests.e2e.test_example import run_example

SMALL = {
    "WORDS": "8",
    "UNLEARN": "unlearning.num_epochs=20 unlearning.batch_size=10 unlearning.learning_rate=1e-3",
}
OVERRIDES = (
    "adapter.rank=16",
    'adapter.target_modules=["*_proj"]',
    "model.max_length=96",
    "model.max_tokens_per_batch=4096",
    "federation.num_rounds=2",
    "federation.local_steps=100",
    "federation.sampling_prob=0.5",
    "federation.learning_rate=1e-2",
)


def check(folder: Path) -> None:
    """What was served changed with the publication, and the receipt says so to whoever asks."""
    before, after = (
        json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("before", "after")
    )
    authority = read_certificate(folder / "client-00" / "identity" / "authority.cert.pem")
    trust = RegistryTrust.of_authority(authority)
    receipt = verify_receipt((folder / "receipt.json").read_text(encoding="utf-8"), trust)
    assert {a["version"] for a in before} <= set(receipt.affected)
    assert {a["version"] for a in after} == {receipt.successor}
    assert [a["said"] for a in before] != [a["said"] for a in after]
    assert receipt.request.num_records == 20
    assert receipt.gate is not None
    assert receipt.gate.passed
    assert receipt.measured_by == "server"
    assert receipt.aliases == ("production",)
    assert (folder / "receipt.html").stat().st_size > 1000
    assert (folder / "lineage.svg").stat().st_size > 1000
    # No row of the author anywhere on the server but in what it was sent sealed, and destroyed.
    secrets = [b"Basil Mahfouz", b"Kuwaiti"]
    for path in (folder / "server").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(secret in content for secret in secrets), path


@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_the_removal_example_in_small(
    tmp_path: Path, shared_models: Path, shared_data: Path
) -> None:
    folder = tmp_path / "removal"
    said = run_example(
        folder,
        *OVERRIDES,
        script="removal.sh",
        MODEL=str(shared_models / "stories260k"),
        TOFU=str(shared_data / "tofu"),
        HF_HUB_OFFLINE="1",
        **SMALL,
    )
    assert "signed, unchanged, and it fits together" in said
    check(folder)


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_the_removal_example_as_it_stands(tmp_path: Path, smollm2: Path, shared_data: Path) -> None:
    folder = tmp_path / "removal"
    said = run_example(
        folder,
        script="removal.sh",
        MODEL=str(smollm2),
        TOFU=str(shared_data / "tofu"),
        HF_HUB_OFFLINE="1",
    )
    assert "signed, unchanged, and it fits together" in said
    check(folder)
