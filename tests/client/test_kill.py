"""kill -9 at random moments of a client: what it sent is paid for, once, and is always the same."""

import contextlib
import itertools
import os
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from fedpeft.dp.accounting import epsilon
from fedpeft.dp.events import DpSgdEvent
from fedpeft.ledger import Ledger
from tests.client.kill_worker import NUM_ROUNDS, NUM_STEPS
from tests.federated.client_rounds import DELTA, NUM_ROWS
from tests.processes import read, running, write

EVENT = DpSgdEvent(noise_multiplier=1.5, sampling_prob=5 / NUM_ROWS, num_steps=NUM_STEPS)


def check(folder: Path) -> tuple[int, int]:
    """Ledger and folder against what was seen outside; returns reservations and releases."""
    log = folder / "log"
    lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    sent = {(int(number), digest) for kind, number, *rest in lines for digest in rest}
    stepped = {int(number) for kind, number, *_ in lines if kind == "step"}
    assert len({number for number, _ in sent}) == len(sent), "a round was sent in two versions"
    with Ledger.open(folder / "ledger.db", read_only=True) as ledger:
        ledger.verify()
        [balance] = ledger.balances()
        reservations = ledger.reservations(balance.fingerprint)
        releases = [ledger.release_of(reservation) for reservation in reservations]
        assert len(reservations) >= len(stepped), "a gradient exists that was not paid for"
        assert len(reservations) <= NUM_ROUNDS, "a round was paid for twice"
        for _, digest in sent:
            assert digest in releases, "something left that was not recorded"
        assert (balance.spent or 0.0) >= epsilon([EVENT] * len(stepped), DELTA)
        assert all(reservation.event == EVENT for reservation in reservations)
    return len(reservations), len([release for release in releases if release])


def kill_again_and_again(
    bert: Path, tmp_path: Path, *, num_kills: int, seed: int, order: str = "right"
) -> Counter[str]:
    """Kills clients at that many moments, up to four a run, and then lets each run finish."""
    dice, hits = random.Random(seed), Counter[str]()
    with running("tests.client.kill_worker", str(bert), order) as clients:
        assert read(clients) == "ready"
        started = time.perf_counter()
        assert finish(clients, tmp_path / "undisturbed") == "done"
        whole_s = time.perf_counter() - started
        for number in itertools.count():
            if hits.total() >= num_kills:
                break
            folder, before = tmp_path / f"client-{number}", (0, 0)
            for _ in range(4):
                write(clients, str(folder))
                child = int(read(clients))
                until = time.perf_counter() + dice.random() * whole_s
                while time.perf_counter() < until:
                    pass
                with contextlib.suppress(ProcessLookupError):  # it was faster
                    os.kill(child, signal.SIGKILL)
                if read(clients) == "done":
                    break
                after = check(folder)
                hits[_moment(before, after)] += 1
                before = after
            assert finish(clients, folder) == "done", "the client cannot go on"
            assert check(folder) == (NUM_ROUNDS, NUM_ROUNDS)
    return hits


def finish(clients: "subprocess.Popen[str]", folder: Path) -> str:
    write(clients, str(folder))
    assert read(clients).isdigit()
    return read(clients)


def _moment(before: tuple[int, int], after: tuple[int, int]) -> str:
    if after == before:
        return "nothing in between"
    return "between reserve and commit" if after[0] > after[1] else "after a commit"


def test_12_kills_of_clients(tiny_bert: Path, tmp_path: Path) -> None:
    kill_again_and_again(tiny_bert, tmp_path, num_kills=12, seed=1)


@pytest.mark.slow
def test_100_kills_of_clients(tiny_bert: Path, tmp_path: Path) -> None:
    hits = kill_again_and_again(tiny_bert, tmp_path, num_kills=100, seed=2)
    assert len(hits) == 3, hits
    assert all(count >= 5 for count in hits.values()), hits


@pytest.mark.slow
@pytest.mark.parametrize(
    ("order", "found"),
    [("late-commit", "not recorded"), ("late-reserve", "not paid for")],
)
def test_the_kills_find_what_comes_too_late(
    tiny_bert: Path, tmp_path: Path, order: str, found: str
) -> None:
    with pytest.raises(AssertionError, match=found):
        kill_again_and_again(tiny_bert, tmp_path, num_kills=60, seed=3, order=order)
