import gc
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import binom

from fedpeft.bench.interleave import paired_ratio, run_interleaved
from fedpeft.bench.schema import RatioReport


class Machine:
    """A clock that only the arms move, and that slows down from block to block."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def arm(self, name: str, cost: float) -> Callable[[], None]:
        def work() -> None:
            self.calls.append(name)
            slowness = 1 + len(self.calls) // 2  # two arms a block: equal inside a block
            self.now += cost * slowness

        return work


def ratio(values: np.ndarray) -> RatioReport:
    return paired_ratio("seconds", ("a", "b"), list(values), [1.0] * len(values))


def test_every_block_runs_every_arm_once_in_an_order_of_its_own():
    machine = Machine()
    arms = {name: machine.arm(name, 1.0) for name in "abcd"}
    timings = run_interleaved(arms, num_blocks=30, num_warmup_blocks=2, seed=1)
    assert len(machine.calls) == 32 * 4
    assert all(sorted(block) == list("abcd") for block in timings.order)
    assert [name for block in timings.order for name in block] == machine.calls[8:]
    first = [block[0] for block in timings.order]
    assert {first.count(name) >= 2 for name in "abcd"} == {True}, "an arm hardly ever goes first"


def test_the_order_follows_the_seed():
    def order(seed: int) -> object:
        arms = {name: (lambda: None) for name in "abcd"}
        return run_interleaved(arms, num_blocks=9, num_warmup_blocks=0, seed=seed).order

    assert order(3) == order(3)
    assert order(3) != order(4)


def test_warm_up_is_not_measured_and_drift_cancels_in_pairs():
    machine = Machine()
    machine.calls.append("before")  # so that the slowness changes between blocks, not inside
    arms = {"slow": machine.arm("slow", 3.0), "fast": machine.arm("fast", 1.5)}
    timings = run_interleaved(
        arms, num_blocks=8, num_warmup_blocks=3, seed=0, clock=lambda: machine.now
    )
    assert {name: len(values) for name, values in timings.seconds.items()} == {"slow": 8, "fast": 8}
    assert min(timings.seconds["slow"]) >= 3.0 * 4, "a warm-up block was measured"
    found = paired_ratio(
        "seconds", ("slow", "fast"), timings.seconds["slow"], timings.seconds["fast"]
    )
    assert np.ptp(timings.seconds["fast"]) > 5, "the machine did not drift"
    # An arm is at most one step of slowness away from the other one of its block.
    assert found.median == pytest.approx(2.0, rel=0.15)


def test_the_device_is_waited_for_before_each_reading():
    events: list[str] = []

    def clock() -> float:
        events.append("clock")
        return 0.0

    run_interleaved(
        {"a": lambda: events.append("work")},
        num_blocks=1,
        num_warmup_blocks=0,
        seed=0,
        synchronize=lambda: events.append("wait"),
        clock=clock,
    )
    assert events == ["wait", "clock", "work", "wait", "clock"]


def test_an_arm_that_fails_leaves_the_garbage_collector_on():
    def fail() -> None:
        assert not gc.isenabled()
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        run_interleaved({"a": fail}, num_blocks=1, num_warmup_blocks=0, seed=0)
    assert gc.isenabled()


def test_pairs_are_taken_inside_a_block():
    """Medians of the two arms would give 1; inside each block the ratio is 4 or 1/4 or 2."""
    found = paired_ratio("seconds", ("a", "b"), [4.0, 1.0, 2.0], [1.0, 4.0, 1.0])
    assert found.median == 2.0
    assert (found.numerator, found.denominator, found.num_pairs) == ("a", "b", 3)


@pytest.mark.parametrize("num_blocks", [6, 7, 8, 12, 20, 41, 100])
def test_interval_is_the_tightest_pair_of_order_statistics_with_that_coverage(num_blocks: int):
    found = ratio(np.random.default_rng(0).permutation(np.arange(1.0, num_blocks + 1)))
    assert found.low is not None
    assert found.confidence is not None
    left_out = int(found.low) - 1
    assert found.high == num_blocks - left_out
    missed = 2 * binom.cdf([left_out, left_out + 1], num_blocks, 0.5)
    assert missed[0] <= 0.05 < missed[1]
    assert found.confidence == pytest.approx(1 - missed[0])


def test_five_blocks_have_no_interval():
    found = ratio(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert (found.median, found.low, found.high, found.confidence) == (3.0, None, None, None)


def test_interval_covers_the_median_of_skewed_ratios():
    """2,000 times 15 blocks, coverage 96.5 %: below 95 % and above 98 % are 3.6 sigmas off."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        found = ratio(1.1 * np.exp(rng.exponential(size=15) - np.log(2)))
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 1.1 <= found.high
    assert 0.95 <= covered / 2000 <= 0.98


def test_interval_rejects_a_target_that_is_missed():
    values = 1.2 * np.exp(0.05 * np.random.default_rng(1).standard_normal(20))
    found = paired_ratio("seconds", ("a", "b"), list(values), [1.0] * 20, at_most=1.05)
    assert found.low is not None
    assert found.low > 1.05
    assert found.is_met is False
