"""Runs in which any process is killed at any moment: they finish, and nothing is lost or refunded.

Every process is killed with SIGKILL and started again at once with the same command, as systemd
does it. Half of the runs are private, for the budgets. The other half have the noise off and sample
every row in every step, so that an update is a function of the adapter that it starts from: however
such a run is disturbed, its adapter must be the undisturbed run's, bit for bit.
"""

import random
import time
from collections import Counter
from typing import Any

import pytest

from tests.e2e import chaos
from tests.e2e.chaos import KINDS
from tests.e2e.checks import check_same_adapters, check_whole
from tests.e2e.federation import NAMES, OFF, PRIVATE, Federation, Watched

NUM_ROUNDS = 4
PRIVATE_RUN = {"privacy": PRIVATE, "num_rounds": NUM_ROUNDS, "local_steps": 4}
PLAIN_RUN = {"privacy": OFF, "num_rounds": NUM_ROUNDS, "local_steps": 4, "sampling_prob": 1.0}
SEED = 20261125


class Trial:
    """Runs of both kinds on one federation, first undisturbed."""

    def __init__(self, opened: Federation) -> None:
        self.opened = opened
        self.killed: Counter[str] = Counter()
        self.num_runs = 0
        self._duration_s: dict[bool, float] = {}
        for settings in (PRIVATE_RUN, PLAIN_RUN):
            self.watch(settings).finished()  # models are loaded
            started = time.monotonic()
            run = self.watch(settings).finished()
            self._duration_s[settings is PLAIN_RUN] = time.monotonic() - started
            if settings is PLAIN_RUN:
                self.undisturbed = run

    def watch(self, settings: dict[str, Any]) -> Watched:
        return self.opened.submit(self.opened.config(**settings))

    def disturbed(self, seed: int) -> None:
        """One run with one to four kills."""
        rng = random.Random(seed)
        plain = bool(seed % 2)
        kills = chaos.draw(rng, rng.randint(1, 4), self._duration_s[plain], NAMES)
        watched = self.watch(PLAIN_RUN if plain else PRIVATE_RUN)
        self.killed += chaos.disturb(self.opened, watched, kills)
        run = watched.finished(600)
        self.num_runs += 1
        check_whole(self.opened, watched, run)
        if plain:
            check_same_adapters(run, self.undisturbed)

    def summary(self) -> str:
        kills = ", ".join(f"{self.killed[kind]} × {kind}" for kind in KINDS)
        durations = "/".join(f"{s:.1f}" for s in self._duration_s.values())
        return f"{self.num_runs} runs ({durations} s undisturbed) with kills: {kills}"


@pytest.fixture(scope="module")
def trial(standing: Federation) -> Trial:
    return Trial(standing)


@pytest.mark.e2e
@pytest.mark.parametrize("seed", range(SEED, SEED + 3))
def test_a_run_survives_kills(trial: Trial, seed: int) -> None:
    trial.disturbed(seed)


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_fifty_runs_survive_kills(trial: Trial) -> None:
    for seed in range(50):
        trial.disturbed(seed)
    print(trial.summary())
    assert all(trial.killed[kind] for kind in KINDS), trial.summary()
