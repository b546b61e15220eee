"""All arms get the same run: what the foreign arms read is what fedpeft is configured to do."""

import importlib.util
import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from fedpeft.bench.stack_job import PreparedJob, StackJob, StackResult, StackSettings, prepare_job
from fedpeft.config import load_config
from fedpeft.federated.plan import plan_run
from tests.tiny_models import write_rows

STACKS = Path(__file__).parents[2] / "benchmarks" / "stacks"


@pytest.fixture(scope="module")
def contract() -> ModuleType:
    """benchmarks/stacks/job.py, which imports nothing of ours."""
    spec = importlib.util.spec_from_file_location("stacks_job", STACKS / "job.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def prepared(tiny_bert: Path, tmp_path: Path) -> PreparedJob:
    settings = StackSettings(
        model=str(tiny_bert),
        train=str(write_rows(tmp_path / "all.jsonl", 200, seed=1)),
        test=str(write_rows(tmp_path / "test.jsonl", 15, seed=2)),
        num_clients=3,
        num_rounds=2,
        local_steps=4,
        expected_batch_size=16,
        target_epsilon=4.0,
        max_length=24,
    )
    return prepare_job(settings, tmp_path)


def test_arms_read_what_was_written(
    prepared: PreparedJob, contract: ModuleType, tmp_path: Path
) -> None:
    job = contract.read_job(str(tmp_path / "job.json"))
    assert asdict(job) == prepared.job.model_dump()
    assert sorted(prepared.num_rows) == [66, 67, 67]
    read = [contract.read_rows(path, job) for path in job.clients]
    assert [len(texts) for texts, _ in read] == prepared.num_rows
    source = contract.read_rows(str(tmp_path / "all.jsonl"), job)
    dealt = [pair for texts, labels in read for pair in zip(texts, labels, strict=True)]
    assert sorted(dealt) == sorted(zip(*source, strict=True))
    assert contract.class_of(job) == {"cold": 0, "warm": 1}
    assert prepared.majority_accuracy == 8 / 15


def test_results_are_read_back(contract: ModuleType, tmp_path: Path) -> None:
    result = contract.Result(
        seconds={"rounds": 1.5},
        num_examples=3,
        num_tokens=20,
        num_padded_tokens=24,
        accuracy=0.5,
        delta_norm=0.25,
        stack={"torch": "2"},
    )
    contract.write_result(str(tmp_path / "result.json"), result)
    read = StackResult.model_validate_json((tmp_path / "result.json").read_bytes())
    assert read.model_dump() == asdict(result)


def test_fedpeft_runs_the_same_plan(prepared: PreparedJob, tmp_path: Path) -> None:
    """The noise that the foreign arms are given is what fedpeft calibrates for itself."""
    config, job = load_config(tmp_path / "run.toml"), prepared.job
    sizes = {f"client-{n}": rows for n, rows in enumerate(prepared.num_rows)}
    plan = plan_run(sizes, config.federation, config.privacy)
    assert [c.dp.noise_multiplier for c in plan.clients.values() if c.dp] == job.noise_multiplier
    assert all(client.num_steps == 8 for client in plan.clients.values())
    assert all(set(cohort) == set(sizes) for cohort in plan.cohorts)
    assert config.data.client_files == tuple(job.clients)
    assert config.adapter.scaling == job.alpha / job.rank
    assert config.federation.evaluate_every == job.num_rounds


def poisson_rows(prepared: PreparedJob, rate: float, rng: np.random.Generator) -> int:
    """Rows of a run that samples at `rate` times the planned probability."""
    job = prepared.job
    num_steps = job.num_rounds * job.local_steps
    return sum(
        int(rng.binomial(n, rate * job.expected_batch_size / n, size=num_steps).sum())
        for n in prepared.num_rows
    )


def test_tolerance_takes_poisson_sampling_and_no_other_rate(prepared: PreparedJob) -> None:
    """At the size of the real benchmark a batch a tenth too large or too small is seen."""
    job = StackJob(**{**prepared.job.model_dump(), "num_rounds": 3, "local_steps": 5})
    full = PreparedJob(
        job=job.model_copy(update={"expected_batch_size": 32}),
        num_rows=[2104] * 32,
        majority_accuracy=0.5,
    )
    assert full.expected_examples == 32 * 32 * 15
    rng = np.random.default_rng(0)
    expected, tolerance = full.expected_examples, full.examples_tolerance
    for rate, is_right in ((1.0, True), (32 / 31.88, True), (0.9, False), (1.1, False)):
        off = [abs(poisson_rows(full, rate, rng) - expected) for _ in range(50)]
        assert [distance <= tolerance for distance in off] == [is_right] * 50
