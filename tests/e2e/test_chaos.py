"""Processes that are killed at certain moments, and at any: nothing is lost, nothing refunded.

Whatever dies, by SIGKILL, is started again at once with the same command, as systemd does it. Some
of the runs are private, for the budgets. The others have the noise off and sample every row in
every step, so that an update is a function of the adapter that it starts from: however such a run
is disturbed, its adapters must be the undisturbed run's, bit for bit.

`test_planted` shows that these tests can fail.
"""

import random
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest

from fedpeft.remote.records import RunDetails
from tests.e2e.chaos import KINDS, disturb, draw
from tests.e2e.checks import check_same_adapters, check_whole
from tests.e2e.crashes import LONG_ROUND, dying_at_work, leaving_after_work
from tests.e2e.federation import NAMES, OFF, PRIVATE, Federation

PRIVATE_RUN = {"privacy": PRIVATE, "num_rounds": 4, "local_steps": LONG_ROUND}
PLAIN_RUN = {"privacy": OFF, "num_rounds": 4, "local_steps": LONG_ROUND, "sampling_prob": 1.0}
FIRST_SEED = 20261125


@dataclass(frozen=True, kw_only=True)
class Undisturbed:
    """A run without noise in which nobody died."""

    run: RunDetails
    seconds: float


@pytest.fixture(scope="module")
def undisturbed(standing: Federation) -> Undisturbed:
    started = time.monotonic()
    run = standing.submit(standing.config(**PLAIN_RUN)).finished()
    return Undisturbed(run=run, seconds=time.monotonic() - started)


@pytest.mark.e2e
def test_what_dies_at_work_begins_again_and_pays_once(standing: Federation) -> None:
    check_whole(standing, *dying_at_work(standing, **PRIVATE_RUN))


@pytest.mark.e2e
def test_what_dies_at_work_changes_no_bit(standing: Federation, undisturbed: Undisturbed) -> None:
    _, run = dying_at_work(standing, **PLAIN_RUN)
    check_same_adapters(run, undisturbed.run)


@pytest.mark.e2e
def test_an_update_outlives_its_client(standing: Federation) -> None:
    check_whole(standing, *leaving_after_work(standing))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + 2))
def test_a_run_survives_kills(standing: Federation, undisturbed: Undisturbed, seed: int) -> None:
    survive(standing, undisturbed, seed)


@pytest.mark.slow
@pytest.mark.timeout(6 * 3600)
def test_fifty_runs_survive_kills(
    standing: Federation, undisturbed: Undisturbed, capsys: pytest.CaptureFixture[str]
) -> None:
    killed: Counter[str] = Counter()
    for seed in range(50):
        killed += survive(standing, undisturbed, seed)
    with capsys.disabled():
        print(f"\n50 runs of {undisturbed.seconds:.1f} s where nobody dies; killed:", dict(killed))
    assert set(killed) == set(KINDS)


def survive(opened: Federation, undisturbed: Undisturbed, seed: int) -> Counter[str]:
    """One run with one to four kills, private where the seed is even; returns who was killed."""
    rng = random.Random(seed)
    settings: dict[str, Any] = PLAIN_RUN if seed % 2 else PRIVATE_RUN
    kills = draw(rng, rng.randint(1, 4), undisturbed.seconds, NAMES)
    watched = opened.submit(opened.config(**settings))
    killed = disturb(opened, watched, kills)
    run = watched.finished(900)
    check_whole(opened, watched, run)
    if settings is PLAIN_RUN:
        check_same_adapters(run, undisturbed.run)
    return killed
