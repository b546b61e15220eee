"""What every arm is given and what it gives back: JOB.json in, RESULT.json out.

    python benchmarks/stacks/<arm>.py JOB.json RESULT.json

No arm imports fedpeft for this, so that its time is its own.
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

STARTED = time.monotonic()


@dataclass(frozen=True, kw_only=True)
class Job:
    """One federated run; the same for all arms. Lists have one entry a client."""

    model: str
    clients: list[str]
    test: str
    text_column: str
    label_column: str
    num_rounds: int
    local_steps: int
    expected_batch_size: float
    rank: int
    alpha: float
    target_modules: list[str]
    learning_rate: float
    head_learning_rate: float
    l2_clip_norm: float
    noise_multiplier: list[float]
    delta: float
    max_length: int
    max_tokens_per_batch: int
    seed: int
    num_cpus: int


@dataclass(frozen=True, kw_only=True)
class Result:
    """What an arm did.

    Attributes:
        seconds: Wall-clock seconds by phase; names ending in `_of_all_clients` are sums over
            clients that ran side by side.
        num_examples: Rows that were trained on, all clients, rounds and steps.
        num_tokens: Their real tokens.
        num_padded_tokens: Their tokens with padding: what the model computed.
        accuracy: On the held-out rows, after the last round.
        delta_norm: L2 norm of the change of the trained tensors.
        stack: Versions and choices.
    """

    seconds: dict[str, float]
    num_examples: int
    num_tokens: int
    num_padded_tokens: int
    accuracy: float
    delta_norm: float
    stack: dict[str, str]


def read_job(path: str) -> Job:
    return Job(**json.loads(Path(path).read_text(encoding="utf-8")))


def write_result(path: str, result: Result) -> None:
    Path(path).write_text(json.dumps(asdict(result), indent=2) + "\n", encoding="utf-8")


def read_rows(path: str, job: Job) -> tuple[list[str], list[object]]:
    """Returns texts and labels."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [row[job.text_column] for row in rows], [row[job.label_column] for row in rows]


def class_of(job: Job) -> dict[object, int]:
    """Returns label → class; the held-out rows define the labels."""
    return {label: n for n, label in enumerate(sorted(set(read_rows(job.test, job)[1]), key=str))}
