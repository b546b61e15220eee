"""Arms in random interleaved order, and the ratio of two of them.

A machine drifts: it heats up, throttles, and does other work. Each block therefore runs every arm
once, in an order of its own, and a ratio is taken inside a block, where both arms met the same
machine. The median over blocks forgets the blocks that were disturbed.
"""

import gc
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from fedpeft.bench.schema import Quantity, RatioReport
from fedpeft.types import derive_seed

Arm = Callable[[], object]
CONFIDENCE = 0.95
"""Of an interval, at least, wherever there are blocks enough for one."""


@dataclass(frozen=True, kw_only=True)
class Timings:
    """What every arm took in every block.

    Attributes:
        seconds: Arm → wall-clock seconds, one a block.
        cpu_seconds: Arm → processor seconds of this process, all threads, one a block.
        order: The order in which the arms ran, one a block.
    """

    seconds: Mapping[str, list[float]]
    cpu_seconds: Mapping[str, list[float]]
    order: Sequence[Sequence[str]]


def run_interleaved(
    arms: Mapping[str, Arm],
    *,
    num_blocks: int,
    num_warmup_blocks: int,
    seed: int,
    synchronize: Callable[[], object] = lambda: None,
    advanced: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Timings:
    """Runs every arm once a block, in a random order.

    Garbage is collected between arms and not during one, as `timeit` does it.

    Args:
        arms: Name → the work, which does the same each time.
        num_blocks: Measured blocks.
        num_warmup_blocks: Blocks before them, not measured.
        seed: Draws the orders.
        synchronize: Waits for the device; called before each reading of the clock.
        advanced: Called after each run of an arm, warm-up included.
        clock: Seconds that only go forward.
    """
    rng = random.Random(derive_seed(seed, "order of arms"))  # noqa: S311  no secret
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in arms}
    order = []
    collecting = gc.isenabled()
    gc.collect()
    gc.freeze()  # what is there already need not be looked through again and again
    try:
        for block in range(-num_warmup_blocks, num_blocks):
            names = list(arms)
            rng.shuffle(names)
            for name in names:
                gc.collect()
                gc.disable()
                synchronize()
                started, cpu_started = clock(), time.process_time()
                arms[name]()
                synchronize()
                elapsed, cpu_elapsed = clock() - started, time.process_time() - cpu_started
                if block >= 0:
                    seconds[name].append(elapsed)
                    cpu_seconds[name].append(cpu_elapsed)
                advanced()
            if block >= 0:
                order.append(names)
    finally:
        gc.unfreeze()
        if collecting:
            gc.enable()
    return Timings(seconds=seconds, cpu_seconds=cpu_seconds, order=order)


def paired_ratio(
    quantity: Quantity,
    names: tuple[str, str],
    numerator: Sequence[float],
    denominator: Sequence[float],
    *,
    confidence: float = CONFIDENCE,
    at_most: float | None = None,
) -> RatioReport:
    """Returns the median of the ratios inside each block, with an interval for it.

    The interval lies between two order statistics of the ratios. Its coverage is exact for any
    continuous distribution of independent blocks, and at least `confidence`; fewer than 6 blocks
    have no 95 % interval (David and Nagaraja, 2003, "Order Statistics", 7.1).

    Args:
        quantity: What the numbers are.
        names: Arm of the numerator and arm of the denominator.
        numerator: One positive number a block.
        denominator: One positive number a block, in the same order.
        confidence: Least coverage of the interval.
        at_most: Target for the median.
    """
    ratios = np.sort(np.array(numerator, dtype=float) / np.array(denominator, dtype=float))
    num_pairs = len(ratios)
    # The k smallest and the k largest are left out: each side misses with P(Binomial < k + 1).
    cut = int(stats.binom.ppf((1 - confidence) / 2, num_pairs, 0.5))
    while cut >= 0 and 2 * stats.binom.cdf(cut, num_pairs, 0.5) > 1 - confidence:
        cut -= 1
    has_interval = cut >= 0
    return RatioReport(
        quantity=quantity,
        numerator=names[0],
        denominator=names[1],
        median=float(np.median(ratios)),
        low=float(ratios[cut]) if has_interval else None,
        high=float(ratios[num_pairs - 1 - cut]) if has_interval else None,
        confidence=1 - 2 * float(stats.binom.cdf(cut, num_pairs, 0.5)) if has_interval else None,
        num_pairs=num_pairs,
        at_most=at_most,
    )


def reachable_confidence(num_pairs: int) -> float:
    """95 %, or what the range of fewer than six pairs covers (three: 75 %); one has no interval."""
    return min(CONFIDENCE, 1 - 2.0 ** (1 - num_pairs) - 1e-9) if num_pairs > 1 else CONFIDENCE
