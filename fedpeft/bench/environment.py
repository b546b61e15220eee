"""Where and with what a benchmark ran, and the report that says so."""

import os
import platform
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from typing import Literal

import torch

from fedpeft import __version__
from fedpeft.bench.schema import BenchReport, CaseReport
from fedpeft.errors import ConfigError

_PACKAGES = ("torch", "transformers", "peft", "numpy", "cryptography")


def device_named(name: str) -> torch.device:
    """Returns the device that 'auto', 'cpu' or 'cuda' means here.

    Raises:
        ConfigError: If it is another name, or there is no such device.
    """
    available = torch.cuda.is_available()
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"the device must be auto, cpu or cuda, got {name!r}")
    if name == "cuda" and not available:
        raise ConfigError("torch finds no CUDA device here; use --device cpu")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def synchronizer(device: torch.device) -> Callable[[], object]:
    """Returns what waits until the device has done its work."""
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


def new_report(
    benchmark: Literal["dp-step", "simulate", "noise", "round"],
    cases: Sequence[CaseReport],
    *,
    seed: int,
    num_blocks: int,
    num_warmup_blocks: int,
    device: torch.device,
    packages: Sequence[str] = (),
) -> BenchReport:
    """Returns the report of cases that were just measured here; `packages` took part as well."""
    return BenchReport(
        benchmark=benchmark,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=seed,
        num_blocks=num_blocks,
        num_warmup_blocks=num_warmup_blocks,
        hardware=hardware(device),
        versions=versions(packages),
        cases=list(cases),
    )


def versions(packages: Sequence[str] = ()) -> dict[str, str]:
    """Returns the versions of everything that takes part; `packages` names more distributions."""
    found = {name: metadata.version(name) for name in (*_PACKAGES, *packages)}
    return {"fedpeft": __version__, "python": platform.python_version(), **found}


def hardware(device: torch.device) -> dict[str, str]:
    """Returns the machine in words, with the number of threads and how busy it was."""
    described = {
        "device": str(device),
        "machine": platform.machine(),
        "cpu": _cpu_name(),
        "cpus": str(os.cpu_count()),
        "torch_threads": str(torch.get_num_threads()),
        "load_average_1min": f"{os.getloadavg()[0]:.2f}",
    }
    if device.type == "cuda":
        described["gpu"] = torch.cuda.get_device_name(device)
        described["cuda"] = str(torch.version.cuda)
    return described


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123  no file of ours
            names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or "unknown"
