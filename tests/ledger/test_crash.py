"""kill -9 at random moments, and several processes after the same last slice."""

import random
from pathlib import Path

import pytest

from fedpeft.dp.accounting import epsilon
from fedpeft.ledger import Ledger
from tests.ledger.samples import DELTA, EVENT, rows
from tests.processes import kill_a_child, read, running, write

WORKER = "tests.ledger.worker"


def kill_again_and_again(
    location: str, folder: Path, *, num_kills: int, seed: int, order: str = "right"
) -> dict[str, int]:
    """Kills a worker so often and checks the ledger after each; returns what the kills hit."""
    released = folder / "released.txt"
    released.touch()
    dice = random.Random(seed)
    hits = {"reserved": 0, "released": 0, "committed": 0, "too early": 0}
    with Ledger.open(location) as ledger:
        data = ledger.register(rows(0, 20))
        ledger.set_budget(data, epsilon=50.0, delta=DELTA)
    with running(WORKER, "nursery", location, data, str(released), order) as nursery:
        assert read(nursery) == "ready"
        for kill in range(1, num_kills + 1):
            # The control aims: a kill that comes later finds the reservation made.
            within_s = 0.012 if order == "right" else 0.0
            lines = kill_a_child(nursery, dice, most_lines=6, within_s=within_s)
            hits[lines[-1]] += 1

            # What stands in the file, the torn last line included, may have been seen by others.
            seen = released.read_text().splitlines()
            with Ledger.open(location) as ledger:
                head = ledger.verify()
                balance = ledger.balance(data)
                assert balance.num_events >= len(seen)
                assert balance.spent is not None
                assert balance.spent >= epsilon([EVENT] * len(seen), DELTA)
                # No more is lost than the one reservation that was open at each kill.
                assert balance.num_open <= kill
                paid = {reservation.id for reservation in ledger.reservations(data)}
                assert order == "wrong" or set(seen) <= paid
                assert ledger.head() == head
    del hits["too early"]
    return hits


def test_kill_40_times(location: str, tmp_path: Path) -> None:
    num_kills = 15 if "://" in location else 40
    hits = kill_again_and_again(location, tmp_path, num_kills=num_kills, seed=1)
    if num_kills == 40:  # fewer may miss a step by chance
        assert all(hits.values()), f"the kills were not spread over the steps: {hits}"


@pytest.mark.slow
def test_kill_200_times(location: str, tmp_path: Path) -> None:
    hits = kill_again_and_again(location, tmp_path, num_kills=200, seed=2)
    assert all(hits.values()), f"the kills were not spread over the steps: {hits}"


def test_the_kills_find_a_release_before_its_reservation(tmp_path: Path) -> None:
    location = str(tmp_path / "ledger.db")
    with pytest.raises(AssertionError, match="num_events"):
        kill_again_and_again(location, tmp_path, num_kills=40, seed=3, order="wrong")


def test_processes_never_take_more_than_there_is(location: str) -> None:
    with Ledger.open(location) as ledger:
        data = ledger.register(rows(0, 20))
        ledger.set_budget(data, epsilon=0.07, delta=DELTA)
        fits = ledger.remaining_events(data, EVENT)
        assert fits > 8
        with (
            running(WORKER, "race", location, data) as one,
            running(WORKER, "race", location, data) as two,
            running(WORKER, "race", location, data) as three,
        ):
            processes = (one, two, three)

            def race() -> list[int]:
                for process in processes:
                    write(process, "go")
                return sorted(int(read(process)) for process in processes)

            assert [read(process) for process in processes] == ["ready"] * 3
            assert sum(race()) == fits
            assert ledger.balance(data).exhausted
            # And of one more slice exactly one process gets anything, ten times over.
            for taken in range(fits + 1, fits + 11):
                ledger.set_budget(data, epsilon=epsilon([EVENT] * taken, DELTA), delta=DELTA)
                assert race() == [0, 0, 1]
        assert ledger.balance(data).num_events == fits + 10
        ledger.verify()
