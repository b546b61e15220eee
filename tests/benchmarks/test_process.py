"""A program's cost is that of all its processes, and a failed one is no measurement."""

import sys
from pathlib import Path

import pytest

from fedpeft.bench import process
from fedpeft.bench.process import run_program
from fedpeft.errors import VerificationError

MEBIBYTE = 1 << 20
CHILD = "import hashlib; x = b'x' * (96 << 20); [hashlib.sha256(x) for _ in range(8)]"


def test_memory_of_children_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child alone holds 96 MiB, and hashes them for as long as many samples take."""
    monkeypatch.setattr(process, "_SAMPLE_EVERY_S", 0.005)
    monkeypatch.setattr(process, "_MAX_SHARE", 0.5)
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}])"
    cost = run_program([sys.executable, "-c", parent], tmp_path / "log")
    assert 96 * MEBIBYTE < cost.peak_bytes < 160 * MEBIBYTE
    assert cost.seconds > 0


def test_arms_choose_their_own_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    code = "import os; print(os.environ.get('OMP_NUM_THREADS'), os.environ['HF_HUB_OFFLINE'])"
    run_program([sys.executable, "-c", code], tmp_path / "log")
    assert (tmp_path / "log").read_text() == "None 1\n"


def test_a_failure_shows_the_end_of_the_log(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match=r"ended with code 3(.|\n)*no such actor"):
        run_program(
            [sys.executable, "-c", "print('no such actor'); raise SystemExit(3)"], tmp_path / "log"
        )
