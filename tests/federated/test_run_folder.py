import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fedpeft.errors import AdapterError, ConfigError, DataError
from fedpeft.federated.local_training import LocalResult
from fedpeft.federated.records import RoundReport
from fedpeft.federated.run_folder import Progress, RunFolder, Update, check_unused
from fedpeft.types import tensor_digest
from tests.tiny_models import equal_tensors

RUN = {"config": {"name": "größe"}, "base_digest": "1", "data_digest": "2"}


def state(seed: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        "base.query.lora_a": torch.randn(3, 5, generator=draw),
        "base.query.lora_b": torch.zeros(4, 3),
        "head.bias": torch.tensor([1e-45, -0.0]),
    }


def progress(round_number: int, tensors: dict[str, Tensor], loss: float = 0.1 + 0.2) -> Progress:
    record = RoundReport(
        round=1,
        cohort=["a"],
        seconds=1.5,
        uplink_bytes=1,
        downlink_bytes=2,
        update_norms={"a": 1 / 3},
        epsilon={"a": 2.5},
        diagnostics={},
        metrics={"loss": loss},
    )
    return Progress(
        round=round_number,
        digest=tensor_digest(tensors),
        initial_metrics={"loss": math.pi},
        num_nonfinite={"a": 2},
        records=[record] * round_number,
        notes=["a note"],
        seconds={"training": 1.0, "evaluation": 2.0},
        ledger_head=None,
    )


def update(seed: int, *, num_nonfinite: int = 0, reservation: str | None = "r1") -> Update:
    result = LocalResult(tensors=state(seed), num_nonfinite=num_nonfinite)
    return Update(result=result, reservation=reservation)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "runs" / "first", RUN)


def test_a_new_run_can_be_reopened(folder: RunFolder) -> None:
    again, run = RunFolder.reopen(folder.path)
    assert run == RUN
    assert again.load_round() is None


@pytest.mark.parametrize("loss", [0.1 + 0.2, math.nan, math.inf])
def test_a_finished_round_comes_back_exactly(folder: RunFolder, loss: float) -> None:
    for number in range(3):
        saved = progress(number, state(number), loss)
        folder.save_round(saved, state(number))
        found = RunFolder.reopen(folder.path)[0].load_round()
        assert found is not None
        assert equal_tensors(found[1], state(number))
        assert repr(found[0]) == repr(saved)
    left = sorted(p.name for p in (folder.path / "checkpoint").iterdir())
    assert left == ["progress.json", "state-0002.safetensors"]


def test_an_update_of_the_open_round_comes_back_exactly(folder: RunFolder) -> None:
    folder.save_round(progress(0, state(0)), state(0))
    assert folder.load_updates(1, ["a"]) is None
    updates = {"a": update(5, num_nonfinite=7), "a.b": update(6, reservation=None)}
    folder.save_updates(1, ["a", "a.b", "sat-out"], updates)
    found = RunFolder.reopen(folder.path)[0].load_updates(1, ["a", "a.b", "sat-out"])
    assert found is not None
    assert found.keys() == updates.keys()
    for client_id, made in updates.items():
        assert equal_tensors(found[client_id].result.tensors, made.result.tensors)
        assert found[client_id].result.num_nonfinite == made.result.num_nonfinite
        assert found[client_id].reservation == made.reservation
    assert folder.load_updates(1, ["a", "a.b"]) is None, "another group"
    assert folder.load_updates(2, ["a", "a.b", "sat-out"]) is None, "another round"
    folder.save_updates(1, ["nobody-paid"], {})
    assert folder.load_updates(1, ["nobody-paid"]) == {}
    folder.save_round(progress(1, state(1)), state(1))
    assert folder.load_updates(1, ["a", "a.b", "sat-out"]) is None, "it outlived its round"


def test_a_crash_between_state_and_progress_keeps_the_round_before(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.save_round(progress(0, state(0)), state(0))
    folder.save_updates(1, ["a"], {"a": update(5)})

    def crash(path: Path, text: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fedpeft.federated.run_folder.write_text", crash)
    with pytest.raises(KeyboardInterrupt):
        folder.save_round(progress(1, state(1)), state(1))
    monkeypatch.undo()
    again, _ = RunFolder.reopen(folder.path)
    found = again.load_round()
    assert found is not None
    assert found[0].round == 0
    assert equal_tensors(found[1], state(0))
    assert again.load_updates(1, ["a"]) is not None


def test_a_truncated_state_is_refused(folder: RunFolder) -> None:
    folder.save_round(progress(1, state(1)), state(1))
    file = folder.path / "checkpoint" / "state-0001.safetensors"
    whole = file.read_bytes()
    for length in (0, 7, 40, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(AdapterError, match="may be truncated"):
            folder.load_round()
    file.unlink()
    with pytest.raises(AdapterError, match="cannot be read"):
        folder.load_round()


def test_an_altered_state_is_refused(folder: RunFolder) -> None:
    folder.save_round(progress(1, state(1)), state(1))
    file = folder.path / "checkpoint" / "state-0001.safetensors"
    altered = bytearray(file.read_bytes())
    altered[-1] ^= 1
    file.write_bytes(altered)
    with pytest.raises(DataError, match="is not the file that"):
        folder.load_round()


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", '{"round": 1, "evil": 2}'])
def test_damaged_progress_is_refused(folder: RunFolder, content: str) -> None:
    (folder.path / "checkpoint" / "progress.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=r"progress\.json is damaged"):
        folder.load_round()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_a_damaged_run_file_is_refused(folder: RunFolder, content: bytes) -> None:
    (folder.path / "run.json").write_bytes(content)
    with pytest.raises(DataError, match=r"run\.json is damaged"):
        RunFolder.reopen(folder.path)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no run to resume: run\.json is missing"):
        RunFolder.reopen(tmp_path)


def test_a_truncated_update_is_refused(folder: RunFolder) -> None:
    folder.save_updates(1, ["a"], {"a": update(5)})
    [file] = (folder.path / "checkpoint" / "round-0001").iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(AdapterError, match="may be truncated"):
        folder.load_updates(1, ["a"])
    save_file(state(5), file)
    with pytest.raises(AdapterError, match="not a file of updates"):
        folder.load_updates(1, ["a"])


def test_only_a_new_or_empty_folder_is_taken(folder: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"already holds something .*--resume"):
        RunFolder.create(folder.path, RUN)
    file = tmp_path / "file"
    file.write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match="already holds something"):
        check_unused(file)
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / ".keep").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError):
        check_unused(hidden)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert RunFolder.create(empty, RUN).path == empty


OTHER_PROCESS = """
import sys
from pathlib import Path
from fedpeft.errors import ConfigError
from fedpeft.federated.run_folder import RunFolder
try:
    with RunFolder(Path(sys.argv[1])).exclusively():
        print("took it")
except ConfigError as error:
    print(error)
"""


def test_two_processes_never_work_on_one_run(folder: RunFolder) -> None:
    """Each would pay for every round, and overwrite the other's."""

    def other() -> str:
        command = [sys.executable, "-c", OTHER_PROCESS, str(folder.path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    with folder.exclusively():
        assert "another process is at work" in other()
    assert other().strip() == "took it"


def test_run_json_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a folder whose making was cut off is no run."""

    def crash(path: Path, text: str) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("fedpeft.federated.run_folder.write_text", crash)
    with pytest.raises(OSError, match="disk full"):
        RunFolder.create(tmp_path / "run", RUN)
    with pytest.raises(DataError, match="holds no run"):
        RunFolder.reopen(tmp_path / "run")
    # And can be had again: it is neither a run to resume nor somebody else's folder.
    monkeypatch.undo()
    (tmp_path / "run" / ".run.json.partial").write_text("{", encoding="utf-8")
    assert RunFolder.create(tmp_path / "run", RUN).path == tmp_path / "run"
    assert RunFolder.reopen(tmp_path / "run")[1] == RUN


def test_what_was_asked_for_is_readable_json(folder: RunFolder) -> None:
    assert json.loads((folder.path / "run.json").read_text(encoding="utf-8")) == RUN
