"""Arms for the process that measures memory; it imports them by name."""

import os
import signal
from collections.abc import Callable

import torch

LOADED_BYTES, STEP_BYTES = 40_000_000, 90_000_000


def known_allocations() -> Callable[[], object]:
    weights = torch.ones(LOADED_BYTES // 4)

    def work() -> None:
        # Freed between the steps: two of them at once would be seen.
        temporary = torch.ones(STEP_BYTES // 4)
        weights[0] = temporary[0]

    return work


def killed() -> Callable[[], object]:
    return lambda: os.kill(os.getpid(), signal.SIGKILL)
