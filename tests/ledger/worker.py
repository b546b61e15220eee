"""Processes for the tests to race and to kill.

`race LOCATION DATA` reserves, for each line that it reads, until the budget is used up, and prints
how often it could.

`nursery LOCATION DATA RELEASED ORDER` forks, for each line that it reads, a child that opens the
ledger and works until it is killed: reserve, append to RELEASED, commit; a word on stdout after
each step. ORDER `wrong` releases first.
"""

import itertools
import os
import sys
from hashlib import sha256

from fedpeft.dp.accounting import epsilon
from fedpeft.errors import BudgetError
from fedpeft.ledger import Ledger
from tests.ledger.samples import DELTA, EVENT
from tests.processes import nurse, say


def race(location: str, data: str) -> None:
    with Ledger.open(location, busy_timeout_s=60) as ledger:
        print("ready", flush=True)
        for _ in sys.stdin:
            print(take_all(ledger, data), flush=True)


def take_all(ledger: Ledger, data: str) -> int:
    for taken in itertools.count():
        try:
            ledger.reserve(data, EVENT)
        except BudgetError:
            return taken
    raise AssertionError


def nursery(location: str, data: str, released: str, order: str) -> None:
    # The children inherit what the accountant and SQLAlchemy remember, so that they are killed at
    # the disk and not in arithmetic.
    for count in range(1, 150):
        epsilon([EVENT.repeated(count)], DELTA)
    with Ledger.open(location) as ledger:
        ledger.verify()
    for _ in nurse():
        work(location, data, released, order)


def work(location: str, data: str, released: str, order: str) -> None:
    with Ledger.open(location, busy_timeout_s=60) as ledger:
        while True:
            if order == "wrong":
                release("too early", released)
                say("too early")
            reservation = ledger.reserve(data, EVENT)
            say("reserved")
            if order == "right":
                release(reservation.id, released)
            say("released")
            ledger.commit(reservation, sha256(reservation.id.encode()).hexdigest())
            say("committed")


def release(what: str, released: str) -> None:
    file = os.open(released, os.O_APPEND | os.O_CREAT | os.O_WRONLY)
    os.write(file, what.encode() + b"\n")
    os.fsync(file)
    os.close(file)


if __name__ == "__main__":
    if sys.argv[1] == "race":
        race(*sys.argv[2:])
    else:
        nursery(*sys.argv[2:])
