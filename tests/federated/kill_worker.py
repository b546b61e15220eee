"""Runs for the tests to kill, each in a process forked from one that has imported everything.

`python -m tests.federated.kill_worker CONFIG RELEASED ORDER` reads a run's folder a line, forks a
child that starts or resumes the run in it, and prints the child's number, and then `done` or
`dead`. The child appends a line for each client to RELEASED whenever a noised gradient of it
exists, and so could have left. ORDER `late` plants a bug: the ledger is charged only when a
release is committed.
"""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from fedpeft.config import RunConfig
from fedpeft.federated import local_training, trainer
from fedpeft.federated.accounts import Accounts
from fedpeft.federated.local_training import LocalClient
from fedpeft.ledger import Ledger
from tests.federated.small_runs import SmallRun


def main() -> None:
    torch.set_num_threads(1)
    config = RunConfig.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
    released = Path(sys.argv[2])
    log_releases(released)
    if sys.argv[3] == "late":
        charge_late()
    say("ready")
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            SmallRun(config=config, folder=Path(line.strip())).finished()
            os._exit(0)
        say(str(child))
        _, status = os.waitpid(child, 0)
        say("done" if status == 0 else "dead")


def log_releases(released: Path) -> None:
    training: list[str] = []
    train: Callable[..., Any] = trainer.train_locally
    step: Callable[..., Any] = local_training.cohort_step

    def train_locally(
        model: Any, clients: Sequence[LocalClient], *rest: Any, **options: Any
    ) -> Any:
        training[:] = [client.plan.client_id for client in clients]
        return train(model, clients, *rest, **options)

    def cohort_step(*arguments: Any) -> Any:
        gradients = step(*arguments)
        with released.open("a", encoding="utf-8") as file:
            file.write("".join(f"{client_id}\n" for client_id in training))
        return gradients

    trainer.train_locally = train_locally  # type: ignore[assignment]
    local_training.cohort_step = cohort_step  # type: ignore[assignment]


def charge_late() -> None:
    reserve, commit = Accounts.reserve, Ledger.commit
    waiting: dict[str, tuple[Any, ...]] = {}

    def late_reserve(*arguments: Any) -> str:
        waiting[f"{len(waiting):032d}"] = arguments
        return f"{len(waiting) - 1:032d}"

    def late_commit(ledger: Ledger, reservation: str, digest: str) -> None:
        if reservation in waiting:
            commit(ledger, reserve(*waiting[reservation]), digest)

    Accounts.reserve = late_reserve  # type: ignore[method-assign]
    Ledger.commit = late_commit  # type: ignore[method-assign, assignment]


def say(word: str) -> None:
    os.write(sys.stdout.fileno(), word.encode() + b"\n")


if __name__ == "__main__":
    main()
