"""What of the machine this process may use; a container sees all of it and is given less."""

import os
from contextlib import suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]

_CGROUP = Path("/sys/fs/cgroup")


def available_memory(cgroup: Path = _CGROUP) -> int:
    """Returns the bytes that can still be had, by the machine and by the container's limit."""
    available = int(psutil.virtual_memory().available)
    with suppress(OSError, ValueError):  # no limit ("max"), or no cgroup of version 2
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
        available = min(available, max(limit - used, 0))
    return available


def available_cores(cgroup: Path = _CGROUP) -> float:
    """Returns the cores that this process may run on, as a fraction where it has a quota."""
    cores = float(len(os.sched_getaffinity(0)))
    with suppress(OSError, ValueError):
        quota, period = (cgroup / "cpu.max").read_text().split()
        cores = min(cores, int(quota) / int(period))
    return cores
