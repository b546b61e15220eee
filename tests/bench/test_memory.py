import os

import pytest
import torch

from fedpeft.bench import memory
from fedpeft.bench.memory import measure_memory
from tests.bench.workers import LOADED_BYTES, STEP_BYTES, killed, known_allocations

_CPU = torch.device("cpu")
_MB = 1_000_000


def test_sees_known_allocations():
    """Not the interpreter, not the rehearsal before, and not the sum of three steps."""
    before = dict(os.environ)
    found = measure_memory(known_allocations, _CPU, 1)
    assert found is not None
    assert found.loaded_bytes == pytest.approx(LOADED_BYTES, abs=2 * _MB)
    assert found.step_bytes == pytest.approx(STEP_BYTES, abs=2 * _MB)
    assert found.peak_bytes == found.loaded_bytes + found.step_bytes
    assert dict(os.environ) == before


def test_a_killed_process_has_no_figure():
    assert measure_memory(killed, _CPU, 1) is None


def test_a_kernel_that_keeps_its_mark_has_no_figure(monkeypatch: pytest.MonkeyPatch):
    """A mark that cannot be started anew would count what loading took for a moment."""
    monkeypatch.setattr(memory.os, "access", lambda *_: False)
    assert memory._on_cpu(known_allocations) is None
