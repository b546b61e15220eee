"""The most memory that an arm's work holds, measured in a process of its own.

A peak is a property of a process, so every arm gets a fresh one, which builds the arm, notes what
that holds, and does the work three times. Counted is what the process holds beyond the interpreter
and its libraries, which are equal in all arms and would pull every ratio towards 1:

- on CUDA, `max_memory_allocated`;
- on a CPU, anonymous resident memory: the kernel's high-water mark of the resident size, started
  anew before the work, minus the pages of files. malloc is told to give large blocks back at once,
  so that the mark follows what is held and not what malloc keeps for later.

`peak_bytes` includes the weights; it is what the memory target is about, because it decides whether
a step fits. `step_bytes` is the peak without what was loaded: the harder comparison, and the one
that does not depend on the size of the model.
"""

import ctypes
import gc
import os
import re
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import torch

from fedpeft.bench.schema import MemoryReport

_NUM_STEPS = 3
_MMAP_BYTES = 65_536
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5)


def measure_memory(
    build: Callable[[], Callable[[], object]], device: torch.device, num_threads: int
) -> MemoryReport | None:
    """Measures one arm in a fresh process.

    Args:
        build: Returns the arm, anew each time; has to be picklable.
        device: Where it works.
        num_threads: Of torch in that process.

    Returns:
        What was measured; None where the system does not say, or the process was killed.
    """
    with _malloc_gives_back(), ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(_measure, build, device, num_threads).result()
        except BrokenProcessPool:
            return None


def _measure(
    build: Callable[[], Callable[[], object]], device: torch.device, num_threads: int
) -> MemoryReport | None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends this one without a traceback
    torch.set_num_threads(num_threads)
    return _on_cuda(build) if device.type == "cuda" else _on_cpu(build)


def _on_cuda(build: Callable[[], Callable[[], object]]) -> MemoryReport:
    work = build()
    work()  # libraries take their workspaces
    gc.collect()
    torch.cuda.synchronize()
    loaded = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(_NUM_STEPS):
        work()
    torch.cuda.synchronize()
    return MemoryReport(
        method="torch.cuda.max_memory_allocated in a process of its own",
        loaded_bytes=loaded,
        peak_bytes=torch.cuda.max_memory_allocated(),
    )


def _on_cpu(build: Callable[[], Callable[[], object]]) -> MemoryReport | None:
    if not os.access(_CLEAR, os.W_OK):
        return None
    # A rehearsal, dropped at once: what stays of it are libraries and what they keep for ever.
    build()()
    _give_back()
    interpreter = _status_bytes("RssAnon")
    work = build()
    _give_back()
    loaded = _status_bytes("RssAnon") - interpreter
    _CLEAR.write_text(_RESET_PEAK, encoding="ascii")
    for _ in range(_NUM_STEPS):
        work()
    peak = _status_bytes("VmHWM") - _status_bytes("RssFile") - interpreter
    return MemoryReport(
        method="anonymous resident memory (VmHWM - RssFile) in a process of its own",
        loaded_bytes=loaded,
        peak_bytes=peak,
    )


def _status_bytes(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", _STATUS.read_text(encoding="ascii"), re.MULTILINE)
    assert found is not None, f"the kernel does not report {name}"
    return int(found[1]) * 1024


def _give_back() -> None:
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@contextmanager
def _malloc_gives_back() -> Iterator[None]:
    """Settings of glibc for the processes started meanwhile; it reads them when it starts."""
    settings = {"MALLOC_MMAP_THRESHOLD_": str(_MMAP_BYTES), "MALLOC_ARENA_MAX": "1"}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
