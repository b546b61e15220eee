"""Arm (c), the floor: forward and backward of the same unpadded tokens, and nothing else.

Every step draws the Poisson batches of all clients, sorts their rows by length and cuts them into
physical batches as fedpeft does; then plain backward of the mean loss into the shared LoRA B and
head. No clipping, no noise, no federation. Only the loop over batches that lie ready is timed; the
parameter step and all loading are not. It runs once in one process with all threads and once in as
many processes as CPUs with one thread each, and the faster of both counts.
"""

import math
import multiprocessing
import os
import sys
import time
from importlib import metadata
from itertools import accumulate
from multiprocessing.synchronize import Barrier

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
from job import Job, class_of, read_job, read_rows, write_result
from job import Result as JobResult

from fedpeft.adapters.config import AdapterConfig
from fedpeft.adapters.lora import LORA_B
from fedpeft.dp.grad_sample import trainable_parameters
from fedpeft.federated.adapted_model import AdaptedModel
from fedpeft.models.base_model import load_base_model, load_tokenizer
from fedpeft.models.dataset import Batch, Dataset, collate, physical_batches
from fedpeft.models.evaluation import evaluate
from fedpeft.models.model_config import ModelConfig
from fedpeft.models.tasks import HEAD

Step = list[Batch]


class Floor:
    """The model and what it is trained on."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.config = ModelConfig(
            name=job.model, task="classification", max_length=job.max_length, device="cpu"
        )
        self.classes = class_of(job)
        adapter = AdapterConfig(
            rank=job.rank, alpha=job.alpha, target_modules=tuple(job.target_modules)
        )
        base = load_base_model(self.config)
        self.model = AdaptedModel(
            base, self.config, adapter, num_classes=len(self.classes), seed=job.seed
        )
        self.model.set_trainable((LORA_B,))
        self.tokenizer = load_tokenizer(self.config)

    def dataset(self, paths: list[str]) -> Dataset:
        """All rows of the files, tokenized."""
        rows = [read_rows(path, self.job) for path in paths]
        texts = [text for part, _ in rows for text in part]
        ids = self.tokenizer(texts, truncation=True, max_length=self.job.max_length)["input_ids"]
        targets = [self.classes[label] for _, part in rows for label in part]
        return Dataset(input_ids=ids, targets=targets, pad_id=self.tokenizer.pad_token_id)

    def steps(self) -> list[Step]:
        """The physical batches of every step of the whole cohort; the same in every process."""
        job = self.job
        sizes = [len(read_rows(path, job)[0]) for path in job.clients]
        rows = self.dataset(job.clients)
        rng = np.random.default_rng(job.seed)
        steps = []
        for _ in range(job.num_rounds * job.local_steps):
            drawn = [
                start + np.flatnonzero(rng.random(n) < min(job.expected_batch_size, n) / n)
                for start, n in zip([0, *accumulate(sizes)], sizes, strict=False)
            ]
            chosen = np.concatenate(drawn).tolist()
            batches = physical_batches(rows, chosen, job.max_tokens_per_batch, self.model.device)
            steps.append([collate(rows, batch, self.model.device) for batch in batches])
        return steps

    def loop(self, step: Step, num_rows: int) -> None:
        """Forward and backward of one step: what is timed."""
        for batch in step:
            (self.model.task_model.losses(batch).sum() / num_rows).backward()

    def warm_up(self, step: Step) -> None:
        """The first pass allocates; it is not timed in any variant."""
        self.loop(step[-1:], 1)
        for parameter in trainable_parameters(self.model.task_model).values():
            parameter.grad = None


def one_process(floor: Floor, steps: list[Step]) -> tuple[float, float]:
    """Trains with all threads; returns the seconds of the loops and the norm of the change."""
    job = floor.job
    torch.set_num_threads(job.num_cpus)
    trained = trainable_parameters(floor.model.task_model)
    before = {name: p.detach().clone() for name, p in trained.items()}
    groups = [
        {
            "params": [p for name, p in trained.items() if name.startswith(HEAD) is is_head],
            "lr": job.head_learning_rate if is_head else job.learning_rate,
        }
        for is_head in (False, True)
    ]
    optimizer = torch.optim.SGD(groups, lr=job.learning_rate)
    floor.warm_up(steps[0])
    seconds = 0.0
    for step in steps:
        num_rows = sum(batch.num_rows for batch in step)
        started = time.monotonic()
        floor.loop(step, num_rows)
        seconds += time.monotonic() - started
        optimizer.step()
        optimizer.zero_grad()
    change = sum(float((p.detach() - before[name]).square().sum()) for name, p in trained.items())
    return seconds, math.sqrt(change)


def many_processes(job: Job) -> float:
    """Runs the same batches dealt out to single-threaded processes; returns the seconds."""
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(job.num_cpus)
    with context.Pool(job.num_cpus, initializer=_set_barrier, initargs=(ready,)) as pool:
        times = pool.starmap(_share, [(job, n) for n in range(job.num_cpus)], chunksize=1)
    starts, ends = zip(*times, strict=True)
    return max(ends) - min(starts)


_ready: Barrier


def _set_barrier(ready: Barrier) -> None:
    global _ready
    _ready = ready


def _share(job: Job, own: int) -> tuple[float, float]:
    torch.set_num_threads(1)
    floor = Floor(job)
    steps = floor.steps()
    floor.warm_up(steps[0])
    _ready.wait()
    started = time.monotonic()
    for step in steps:
        num_rows = sum(batch.num_rows for batch in step)
        floor.loop(step[own :: job.num_cpus], num_rows)
    return started, time.monotonic()


def main() -> None:
    _, job_path, result_path = sys.argv
    job = read_job(job_path)
    torch.set_num_threads(job.num_cpus)
    floor = Floor(job)
    steps = floor.steps()
    threads_s, delta_norm = one_process(floor, steps)
    processes_s = many_processes(job)
    test = floor.dataset([job.test])
    metrics = evaluate(
        floor.model.task_model, test, task="classification", max_tokens=job.max_tokens_per_batch
    )
    batches = [batch for step in steps for batch in step]
    write_result(
        result_path,
        JobResult(
            seconds={
                "forward_backward": min(threads_s, processes_s),
                "one_process_all_threads": threads_s,
                "one_thread_each_process": processes_s,
            },
            num_examples=sum(batch.num_rows for batch in batches),
            num_tokens=sum(int(batch.attention_mask_NT.sum()) for batch in batches),
            num_padded_tokens=sum(batch.input_ids_NT.numel() for batch in batches),
            accuracy=metrics["accuracy"],
            delta_norm=delta_norm,
            stack={
                **{name: metadata.version(name) for name in ("transformers", "torch")},
                "padding": f"rows sorted by length, at most {job.max_tokens_per_batch} tokens",
                "per-example gradients": "none",
            },
        ),
    )


if __name__ == "__main__":
    main()
