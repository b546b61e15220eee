"""Runs in which a certain process dies at a certain moment of a round."""

from fedpeft.remote.records import RunDetails
from fedpeft_server import events
from tests.e2e.federation import NAMES, Federation, Watched

LONG_ROUND = 100
"""Local steps: long enough to be in the middle of it."""


def dying_at_work(opened: Federation, **settings: object) -> tuple[Watched, RunDetails]:
    """In round 2 the server is killed, while an update is made for it; in round 3 an executor."""
    watched = opened.submit(opened.config(**{"local_steps": LONG_ROUND, **settings}))
    bank, clinic = (opened.clients[name].process for name in NAMES[:2])
    of_bank, of_clinic = bank.position, clinic.position
    clinic.line('"kind": "round-started", "round": 2', after=of_clinic)
    opened.server.kill()
    clinic.line('"kind": "round-finished", "round": 2', after=of_clinic)
    opened.server.start()
    bank.line('"kind": "step", "round": 3', after=of_bank)
    [executor] = bank.workers()
    executor.kill()
    bank.line("it is started again", after=of_bank)
    return watched, watched.finished()


def leaving_after_work(opened: Federation) -> tuple[Watched, RunDetails]:
    """In the only round a client is killed when its update is stored, and then the server.

    The others, who were held up, answer the next server; the one who is gone cannot.
    """
    watched = opened.submit(
        opened.config(num_rounds=1, local_steps=LONG_ROUND, most_attempts=1, round_deadline_s=60)
    )
    first, *others = (opened.clients[name].process for name in NAMES)
    for name in NAMES:
        watched.event(events.ACCEPTED, client_id=name)
    held_up = [worker for process in others for worker in process.workers()]
    for worker in held_up:
        worker.suspend()
    watched.event(events.UPDATE, client_id=first.name)
    first.kill()
    opened.server.kill()
    for worker in held_up:
        worker.resume()
    opened.server.start()
    run = watched.finished()
    first.start()
    return watched, run
