"""Kills of any process of a federation at random moments, each started again at once."""

import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from tests.e2e.federation import Federation, Watched
from tests.e2e.process import Process

KINDS = ("server", "model of the run", "client", "executor of a client")
"""A client and the server have a process each; each of these has one that computes."""


@dataclass(frozen=True, kw_only=True)
class Kill:
    """What is killed, and when, in seconds from the submission of the run."""

    at_s: float
    kind: str
    client: str


def draw(rng: random.Random, num_kills: int, within_s: float, clients: Sequence[str]) -> list[Kill]:
    """Kills of any kind and any client, in the order of their moments."""
    kills = [
        Kill(at_s=rng.uniform(0, within_s), kind=rng.choice(KINDS), client=rng.choice(clients))
        for _ in range(num_kills)
    ]
    return sorted(kills, key=lambda kill: kill.at_s)


def disturb(federation: Federation, watched: Watched, kills: Sequence[Kill]) -> Counter[str]:
    """Kills while the run goes on; returns how many of each kind found somebody to kill."""
    started = time.monotonic()
    done: Counter[str] = Counter()
    for kill in kills:
        if watched.wait(kill.at_s - (time.monotonic() - started)):
            break
        done[kill.kind] += perform(federation, kill)
    return done


def perform(federation: Federation, kill: Kill) -> bool:
    """Returns whether there was a process to kill."""
    of_client = kill.kind in KINDS[2:]
    process = federation.clients[kill.client].process if of_client else federation.server
    if kill.kind in ("server", "client"):
        process.kill()
        process.start()
        return True
    return kill_worker(process)


def kill_worker(process: Process) -> bool:
    """Kills the process in which another one computes, if there is one now."""
    for worker in process.workers():
        try:
            worker.kill()
        except psutil.NoSuchProcess:
            continue
        return True
    return False
