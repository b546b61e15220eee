"""What needs no server: policy, rows, ledger, disk, memory, processors, GPU, base models."""

import re
import sqlite3
from pathlib import Path

import pytest
import tomli_w
import torch

from fedpeft.dp.events import DpSgdEvent
from fedpeft.ledger import Ledger
from fedpeft.models.base_digest import base_digest
from fedpeft_client.doctor import memory
from fedpeft_client.doctor.base_models import check_base_models
from fedpeft_client.doctor.disk import check_disk
from fedpeft_client.doctor.examine import examine
from fedpeft_client.doctor.finding import Finding, Grade
from fedpeft_client.doctor.gpu import check_gpu
from fedpeft_client.doctor.ledger import check_ledger
from fedpeft_client.doctor.limits import available_cores, available_memory
from fedpeft_client.doctor.machine import Machine
from fedpeft_client.doctor.memory import check_memory
from fedpeft_client.doctor.policy import check_policy
from fedpeft_client.doctor.processors import check_processors
from fedpeft_client.doctor.rows import check_rows
from fedpeft_client.state_folder import Membership, StateFolder

_DIGEST = "0" * 64


def _folder(path: Path, **policy: object) -> Path:
    StateFolder.create(path, tomli_w.dumps(policy))
    return path


def _joined(path: Path, *, spent: bool = False) -> Path:
    """A folder whose ledger has a budget for three rows, all of it spent or nothing."""
    folder = StateFolder(_folder(path))
    with Ledger.open(folder.ledger) as ledger:
        dataset = ledger.register([{"text": str(i)} for i in range(3)])
        ledger.set_budget(dataset, epsilon=6.0, delta=1e-5)
        if spent:
            event = DpSgdEvent(noise_multiplier=1.0, sampling_prob=1.0, num_steps=1)
            ledger.commit(ledger.reserve(dataset, event), _DIGEST)
    folder.join(
        Membership(
            client_id="clinic",
            federation=_DIGEST,
            server="localhost:7443",
            ledger=str(folder.ledger),
            data="rows.jsonl",
            dataset=dataset,
            num_rows=3,
        )
    )
    return path


def _is(found: Finding, grade: Grade, *words: str) -> None:
    assert found.grade is grade, found
    assert bool(found.remedy) is (grade in (Grade.WARN, Grade.FAIL)), found
    for word in words:
        assert word in found.found + found.remedy, found


# --- policy


def test_policy(tmp_path: Path) -> None:
    _is(check_policy(Machine()), Grade.SKIPPED)
    _is(check_policy(Machine(state=tmp_path / "none")), Grade.SKIPPED)
    _is(check_policy(Machine(state=_folder(tmp_path / "good"))), Grade.OK, "noise at least 0.3")


@pytest.mark.parametrize(
    ("policy", "word"),
    [({"min_noise": 1.0}, "did you mean min_noise_multiplier"), ({"max_rounds": 0}, "max_rounds")],
)
def test_a_policy_that_cannot_be_read(tmp_path: Path, policy: dict[str, object], word: str) -> None:
    _is(check_policy(Machine(state=_folder(tmp_path / "s", **policy))), Grade.FAIL, word)


def test_a_policy_that_is_gone(tmp_path: Path) -> None:
    (_folder(tmp_path / "s") / "policy.toml").unlink()
    _is(check_policy(Machine(state=tmp_path / "s")), Grade.FAIL, "policy.toml")


def test_a_policy_without_privacy(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "s", allow_without_privacy=True)
    _is(check_policy(Machine(state=folder)), Grade.WARN, "allow_without_privacy")


def test_a_folder_that_others_can_read(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "s")
    folder.chmod(0o750)
    _is(check_policy(Machine(state=folder)), Grade.FAIL, "chmod 700")
    _is(check_ledger(Machine(state=folder)), Grade.SKIPPED)


# --- rows


def test_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n')
    path.chmod(0o640)
    machine = Machine(data=str(path), columns=("text", "label"))
    _is(check_rows(machine), Grade.OK, "2 in", "text, label")
    path.chmod(0o644)
    _is(check_rows(machine), Grade.WARN, "everybody on this machine can read it", "chmod o=")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("rows.jsonl", None, "rows.jsonl"),
        ("rows.jsonl", b"", "no rows"),
        ("rows.jsonl", b"not json\n", "rows.jsonl:1"),
        ("rows.jsonl", b'{"text": "a"}\n', "label"),
        ("rows.csv", b"text,label\na,\n", "label"),
        ("rows.parquet", b"PAR1 is only where it begins", "rows.parquet"),
        ("rows.xlsx", b"x", ".parquet"),
    ],
)
def test_rows_that_cannot_be_used(
    tmp_path: Path, name: str, content: bytes | None, words: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    machine = Machine(data=str(path), columns=("text", "label"))
    _is(check_rows(machine), Grade.FAIL, words)


# --- ledger


def test_a_ledger_to_come(tmp_path: Path) -> None:
    _is(check_ledger(Machine(state=_folder(tmp_path / "s"))), Grade.OK, "will be made")
    _is(check_ledger(Machine()), Grade.SKIPPED)
    _is(check_ledger(Machine(ledger=str(tmp_path / "ledger.db"))), Grade.OK, "will be made")
    assert not (tmp_path / "ledger.db").exists()


def test_a_sound_ledger(tmp_path: Path) -> None:
    folder = _joined(tmp_path / "s")
    before = (folder / "ledger.db").read_bytes()
    _is(check_ledger(Machine(state=folder)), Grade.OK, "sound, 3 entries", "ε 0.00 of 6")
    assert (folder / "ledger.db").read_bytes() == before


def test_a_budget_that_is_spent(tmp_path: Path) -> None:
    folder = _joined(tmp_path / "s", spent=True)
    _is(
        check_ledger(Machine(state=folder)),
        Grade.WARN,
        "ε 4.38 of 6.00 is spent",
        "would not fit again",
    )


def test_a_ledger_that_is_gone(tmp_path: Path) -> None:
    folder = _joined(tmp_path / "s")
    (folder / "ledger.db").unlink()
    _is(check_ledger(Machine(state=folder)), Grade.FAIL, "missing", "docs/runbook.md")
    assert not (folder / "ledger.db").exists(), "an empty one would forget what was spent"


def test_another_ledger_than_before(tmp_path: Path) -> None:
    folder = _joined(tmp_path / "s")
    machine = Machine(state=folder, ledger=str(tmp_path / "fresh.db"))
    _is(check_ledger(machine), Grade.FAIL, "does not know what was spent")


def test_a_ledger_that_was_changed(tmp_path: Path) -> None:
    folder = _joined(tmp_path / "s")
    with sqlite3.connect(folder / "ledger.db") as database:
        for (name,) in database.execute(
            "select name from sqlite_master where type='trigger'"
        ).fetchall():
            database.execute(f"drop trigger {name}")
        database.execute("update ledger_entries set body = replace(body, '6', '7')")
    database.close()
    _is(check_ledger(Machine(state=folder)), Grade.FAIL)


def test_a_ledger_that_is_no_database(tmp_path: Path) -> None:
    folder = _joined(tmp_path / "s")
    (folder / "ledger.db").write_bytes(b"not a database at all" * 100)
    _is(check_ledger(Machine(state=folder)), Grade.FAIL, "docs/runbook.md")


# --- the machine


def test_disk(tmp_path: Path) -> None:
    place = tmp_path / "not" / "yet" / "made"
    found = check_disk(Machine(state=place))
    assert found.grade in (Grade.OK, Grade.WARN)
    assert str(tmp_path) in found.found
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_small(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "s", max_adapter_bytes=2**60)
    _is(check_disk(Machine(state=folder)), Grade.FAIL, "make room")


def test_a_disk_that_cannot_be_written() -> None:
    _is(check_disk(Machine(state=Path("/proc/fedpeft"))), Grade.FAIL, "cannot be written")


def test_limits_of_a_container(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert available_memory(tmp_path) == 600_000
    assert available_cores(tmp_path) == 0.5


def test_no_limits(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert available_memory(tmp_path) > 2**20
    assert available_cores(tmp_path) >= 1


@pytest.mark.parametrize(
    ("free", "grade"), [(2**29, Grade.FAIL), (2**31, Grade.WARN), (2**33, Grade.OK)]
)
def test_memory(monkeypatch: pytest.MonkeyPatch, free: int, grade: Grade) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: free)
    _is(check_memory(Machine()), grade, f"{free / 2**30:.1f} GiB")


def test_more_threads_than_cores() -> None:
    before = torch.get_num_threads()
    _is(check_processors(Machine()), Grade.OK, "1 threads")
    try:
        torch.set_num_threads(64)
        _is(check_processors(Machine()), Grade.WARN, "64 threads", "--threads")
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_gpu(tmp_path: Path) -> None:
    _is(check_gpu(Machine()), Grade.OK, "will use the CPU")
    _is(check_gpu(Machine(needs_gpu=True)), Grade.FAIL, "CUDA build of torch")
    wants = _folder(tmp_path / "wants", device="cuda")
    _is(check_gpu(Machine(state=wants)), Grade.FAIL)
    without = _folder(tmp_path / "without", device="cpu")
    _is(check_gpu(Machine(state=without)), Grade.OK, "not used")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu() -> None:
    _is(check_gpu(Machine(needs_gpu=True)), Grade.OK, "GiB free")


# --- base models


def test_base_models(tmp_path: Path, tiny_bert: Path, tiny_llama: Path) -> None:
    right = base_digest(str(tiny_bert), "classification")
    (missing,) = check_base_models(Machine())
    _is(missing, Grade.SKIPPED)
    (none,) = check_base_models(Machine(state=_folder(tmp_path / "none")))
    _is(none, Grade.WARN, "--allow-model")
    allowed = {
        right: {"name": str(tiny_bert)},
        _DIGEST: {"name": str(tiny_llama)},
        "1" * 64: {"name": str(tmp_path / "nowhere")},
    }
    folder = _folder(tmp_path / "some", base_models=allowed)
    good, wrong, gone = check_base_models(Machine(state=folder))
    _is(good, Grade.OK, right[:12])
    _is(wrong, Grade.FAIL, "another model than the policy names", "000000000000…")
    _is(gone, Grade.FAIL, "nowhere")


# --- all of it


def test_all_of_it_offline_changes_nothing(tmp_path: Path) -> None:
    folder = _joined(tmp_path / "s")

    def content() -> dict[Path, bytes]:
        # Whoever reads a SQLite database in WAL mode makes two files beside it.
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        return {
            path: path.read_bytes() for path in files if not re.search("-(wal|shm)$", path.name)
        }

    before = content()
    found = list(examine(Machine(state=folder)))
    assert content() == before
    names = [name for name, _ in found]
    assert len(set(names)) == len(names) == 13
    assert {name for name, finding in found if finding.grade is Grade.SKIPPED} == {
        "certificate", "control port", "fleet port", "clock", "protocol", "rows",
    }  # fmt: skip


def test_a_folder_of_somebody_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # A stand-in: whoever runs the tests as root can read everything.
    def stat(path: Path, **_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", stat)
    found = dict(examine(Machine(identity=tmp_path / "identity")))
    _is(found["certificate"], Grade.FAIL, "identity cannot be used (Permission denied)")
    assert found["memory"].grade is not Grade.SKIPPED, "the other checks go on"
