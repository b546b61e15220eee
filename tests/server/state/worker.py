"""Processes for the tests to race and to kill.

`race LOCATION NAME` does, for each line that it reads, what other processes do at the same time,
and prints how often it was the first.

`nursery LOCATION ORDER` forks, for each line that it reads, a child that opens the state and works
until it is killed; a line on stdout after each step. ORDER `wrong` makes every statement a
transaction of its own.
"""

import sys
from datetime import timedelta
from typing import Any

from sqlalchemy import event

from fedpeft_server.records import RemovalState
from fedpeft_server.state import State
from tests.processes import nurse, say
from tests.server.state.samples import (
    COHORT,
    NOW,
    SOON,
    a_budget,
    a_client,
    a_removal,
    an_update,
    digest,
    enrol,
    finish,
)


def race(location: str, name: str) -> None:
    with State.open(location, busy_timeout_s=60) as state:
        print("ready", flush=True)
        for _ in sys.stdin:
            print(take_all(state, name), flush=True)


def take_all(state: State, name: str) -> int:
    """Every process tries the same; each thing is done once."""
    first = 0
    for number in range(20):
        first += state.use_nonce("a1", bytes([number]), SOON + timedelta(days=1), NOW)
        first += state.add_update(an_update(f"client-{number}"), None)
        state.append_audit(name, "race", str(number), "ok")
        state.add_event("run-1", "note")
    return first


def nursery(location: str, order: str) -> None:
    with State.open(location) as state:
        state.verify_audit()  # the children inherit what SQLAlchemy has compiled
    for _ in nurse():
        work(location, order)


def work(location: str, order: str) -> None:
    with State.open(location, busy_timeout_s=60) as state:
        if order == "wrong":
            split_transactions(state)
        while True:
            step(state)


def step(state: State) -> None:
    """Goes on where the state says that the last one was killed."""
    number = len(state.rounds("run-1")) + 1
    name = f"client-{len(state.clients())}"
    enrol(state, a_client(name, serial=name))
    say(f"enrolled {name}")
    for client in COHORT:
        update = an_update(client, number)
        # A lower statement each second round, which writes into the audit log too.
        spent = number if number % 2 else number - 1.5
        state.add_update(update, a_budget(client, number, epsilon_spent=spent))
        say(f"updated {number} {client}")
    finish(state, number)
    say(f"finished {number}")
    state.append_audit("worker", "finish", str(number), "ok")
    say(f"audited {number}")
    remove(state, number)
    say(f"removed {number}")


def remove(state: State, number: int) -> None:
    """Brings a removal request to its end."""
    removal = a_removal(
        str(number),
        records_digest=digest("records", number),
        job_public_key=b"\x01" * 32,
        job_private_key=b"\x02" * 32,
    )
    state.add_removal(removal, removal.request_id)
    found = state.store_sealed(removal.request_id, digest("sealed", number))
    for following in (RemovalState.RUNNING, RemovalState.VERIFYING, RemovalState.FAILED):
        found = state.advance(removal.request_id, following, expected={found.state})


def split_transactions(state: State) -> None:
    with state._database.reading():
        engine = state._database._engine
    assert engine is not None

    @event.listens_for(engine, "after_cursor_execute")
    def _commit(connection: Any, cursor: Any, statement: str, *rest: object) -> None:
        if statement.startswith(("INSERT", "UPDATE", "DELETE")):
            cursor.connection.execute("COMMIT")
            cursor.connection.execute("BEGIN IMMEDIATE")


if __name__ == "__main__":
    if sys.argv[1] == "race":
        race(*sys.argv[2:])
    else:
        nursery(*sys.argv[2:])
