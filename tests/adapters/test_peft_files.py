"""What a damaged, foreign or malicious adapter folder does: one clear error, and nothing else."""

import json
import pickle
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fedpeft.adapters.config import AdapterConfig
from fedpeft.adapters.lora import Lora
from fedpeft.adapters.peft_files import CONFIG_FILE, WEIGHTS_FILE, load_tensors
from fedpeft.errors import AdapterError

CONFIG = AdapterConfig(rank=2, target_modules=("query",))


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A sound adapter as the peft library would store it."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "bias": "none"}
    (folder / CONFIG_FILE).write_text(json.dumps(settings), encoding="utf-8")
    stem = "base_model.model.query"
    tensors = {f"{stem}.lora_A.weight": torch.ones(2, 3), f"{stem}.lora_B.weight": torch.ones(4, 2)}
    save_file(tensors, folder / WEIGHTS_FILE)
    return folder


def read(folder: Path) -> dict[str, torch.Tensor]:
    return Lora().import_peft(folder, CONFIG, prefix="base")


def test_the_sound_adapter_is_read(adapter: Path) -> None:
    assert {n: tuple(t.shape) for n, t in read(adapter).items()} == {
        "base.query.lora_a": (2, 3),
        "base.query.lora_b": (4, 2),
    }


def test_half_precision_becomes_float32(adapter: Path) -> None:
    stem = "base_model.model.query.lora"
    halves = {f"{stem}_{x}.weight": torch.full((2, 2), 0.5).bfloat16() for x in "AB"}
    save_file(halves, adapter / WEIGHTS_FILE)
    found = read(adapter)
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert all((tensor == 0.5).all() for tensor in found.values())


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_a_missing_file_is_named(adapter: Path, name: str) -> None:
    (adapter / name).unlink()
    with pytest.raises(AdapterError, match=f"is no PEFT adapter: {name} is missing"):
        read(adapter)


def test_weights_cut_off_anywhere_are_refused(adapter: Path) -> None:
    whole = (adapter / WEIGHTS_FILE).read_bytes()
    for length in range(len(whole)):
        (adapter / WEIGHTS_FILE).write_bytes(whole[:length])
        with pytest.raises(AdapterError, match="may be truncated"):
            read(adapter)


def test_damaged_headers_are_refused_or_read(adapter: Path) -> None:
    """A flipped byte gives an AdapterError, or another adapter: never another kind of error."""
    whole = (adapter / WEIGHTS_FILE).read_bytes()
    header = int.from_bytes(whole[:8], "little") + 8
    rng = random.Random(0)
    refused = 0
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[rng.randrange(header)] = rng.randrange(256)
        (adapter / WEIGHTS_FILE).write_bytes(damaged)
        try:
            read(adapter)
        except AdapterError:
            refused += 1
    assert refused > 200


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not a JSON object"),
        (b"[]", "is not a JSON object"),
        (b"\xff\xfe", "is not a JSON object"),
        (b'"LORA"', "is not a JSON object"),
        (b"{}", "expected peft_type LORA, got None"),
        (b'{"peft_type": "IA3"}', "expected peft_type LORA, got IA3"),
        (b'{"peft_type": "LORA"}', "has r = None and lora_alpha = None"),
        (b'{"peft_type": "LORA", "r": 2, "lora_alpha": "2"}', "expected rank 2 and alpha 2"),
        (b'{"peft_type": "LORA", "r": 0, "lora_alpha": 2}', "expected rank 2 and alpha 2"),
    ],
)
def test_a_configuration_that_is_none_is_refused(
    adapter: Path, content: bytes, message: str
) -> None:
    (adapter / CONFIG_FILE).write_bytes(content)
    with pytest.raises(AdapterError, match=message):
        read(adapter)


@pytest.mark.parametrize(
    "name", ["lora_A.weight", "base_model.model.query.lora_embedding_A", "base_model.model.x"]
)
def test_a_tensor_that_is_no_factor_is_refused(adapter: Path, name: str) -> None:
    save_file({name: torch.ones(2)}, adapter / WEIGHTS_FILE)
    with pytest.raises(AdapterError, match="is no LoRA factor"):
        read(adapter)


class Payload:
    """Unpickling it makes the file `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_is_never_read(adapter: Path, tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    poison = pickle.dumps(Payload(touched))
    pickle.loads(poison)
    touched.unlink()  # the payload works

    (adapter / "adapter_model.bin").write_bytes(poison)
    assert len(read(adapter)) == 2
    (adapter / WEIGHTS_FILE).unlink()
    with pytest.raises(AdapterError, match=f"{WEIGHTS_FILE} is missing"):
        read(adapter)
    (adapter / WEIGHTS_FILE).write_bytes(poison)
    with pytest.raises(AdapterError, match="cannot be read as safetensors"):
        read(adapter)
    torch.save({"weight": torch.ones(2)}, adapter / WEIGHTS_FILE)
    with pytest.raises(AdapterError, match="cannot be read as safetensors"):
        read(adapter)
    assert not touched.exists()


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.safetensors", tmp_path):
        with pytest.raises(AdapterError, match="cannot be read as safetensors"):
            load_tensors(path)
