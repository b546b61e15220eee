"""Clients for the tests to kill, each in a process forked from one that has imported everything.

`python -m tests.client.kill_worker MODEL ORDER` reads a client's folder a line, and forks a child
that goes on with the run of three rounds in it; it prints the child's number, and then `done` or
`dead`. The child appends `step ROUND` to the folder's log whenever a noised gradient exists, and
`sent ROUND DIGEST` when an update has left. ORDER plants a bug: `late-commit` commits what was sent
only after it was sent, `late-reserve` reserves only when a release is committed.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fedpeft.federated.messages import RoundPlan, UpdateHeader
from fedpeft.ledger import Ledger
from fedpeft.ledger.records import Reservation
from fedpeft.wire.blobs import to_blob
from fedpeft_client.executor import Executor
from tests.client.trainings import Told, setup_of
from tests.federated.client_rounds import (
    CLIENT,
    PLAN_DIGEST,
    Client,
    first_adapter,
    make_client,
    plan_for,
    policy_for,
    terms_for,
)
from tests.processes import say

NUM_ROUNDS, NUM_STEPS = 3, 4


def main() -> None:
    torch.set_num_threads(1)
    model, order = Path(sys.argv[1]), sys.argv[2]
    terms = terms_for(model, federation={"local_steps": NUM_STEPS, "num_rounds": NUM_ROUNDS})
    adapter = first_adapter(terms, policy_for(model))
    plans = [plan_for(terms, adapter, round=n) for n in range(1, NUM_ROUNDS + 1)]
    say("ready")
    for line in sys.stdin:
        client = make_client(Path(line.strip()), model)
        client.ledger.close()
        child = os.fork()
        if child == 0:
            work(client, plans, to_blob(adapter), order)
            os._exit(0)
        say(str(child))
        _, status = os.waitpid(child, 0)
        say("done" if status == 0 else "dead")


def work(client: Client, plans: list[RoundPlan], blob: bytes, order: str) -> None:
    log = Log(client.folder / "log")
    after_sending = plant(order, client.folder / "ledger.db")
    half = Executor([setup_of(client)], num_threads=1)
    # What was sent last may have been lost on its way, and is asked for again.
    for plan in plans[max(0, log.last_round() - 1) :]:
        told = Told(lambda step, number=plan.round: log(f"step {number}"))
        reply, _ = half.train(CLIENT, plan, blob, PLAN_DIGEST, progress=told)
        assert isinstance(reply.answer, UpdateHeader), told.notes
        log(f"sent {plan.round} {reply.answer.digest}")
        after_sending()


class Log:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_APPEND | os.O_CREAT | os.O_WRONLY)

    def __call__(self, line: str) -> None:
        os.write(self._file, line.encode() + b"\n")

    def last_round(self) -> int:
        lines = [line.split() for line in self._path.read_text().splitlines()]
        return max((int(line[1]) for line in lines), default=0)


def plant(order: str, location: Path) -> Callable[[], None]:
    """Puts a bug in, or none; returns what is to be called when an update has left."""
    commit, reserve = Ledger.commit, Ledger.reserve
    late: list[tuple[Any, ...]] = []
    if order == "late-commit":

        def kept(ledger: Ledger, *what: Any) -> None:
            late.append(what)

        Ledger.commit = kept  # type: ignore[method-assign, assignment]

        def send() -> None:
            for what in late:
                with Ledger.open(location) as ledger:
                    commit(ledger, *what)
            late.clear()

        return send
    if order == "late-reserve":

        def promised(ledger: Ledger, fingerprint: str, event: Any, *, purpose: str) -> Reservation:
            late.append((fingerprint, event, purpose))
            return Reservation(
                id="later", fingerprint=fingerprint, event=event, purpose=purpose, position=1
            )

        def both(ledger: Ledger, reservation: str, digest: str) -> None:
            if reservation == "later":
                fingerprint, event, purpose = late.pop()
                reservation = reserve(ledger, fingerprint, event, purpose=purpose).id
            commit(ledger, reservation, digest)

        Ledger.reserve = promised  # type: ignore[method-assign, assignment]
        Ledger.commit = both  # type: ignore[method-assign, assignment]
    return lambda: None


if __name__ == "__main__":
    main()
