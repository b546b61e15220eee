"""Cohorts in Ray actors: the same run, whoever trains it, and whoever dies."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fedpeft.errors import ConfigError, ModelError
from fedpeft.federated.trainer import Job
from fedpeft.workers import RayTrainer, RayWorkers, Worker, WorkersConfig, started_ray
from tests.federated.small_runs import SEEDED, SmallRun, Watcher, charged, outcome, run_config

TWO = WorkersConfig(num_workers=2)


@pytest.fixture(scope="session")
def ray() -> Iterator[None]:
    """One Ray for all tests: it takes seconds to start."""
    with started_ray(TWO):
        yield


def process_id(worker: Worker) -> int:
    return os.getpid()


def num_mapped(worker: Worker) -> tuple[int, int]:
    """How many of the base model's own tensors lie in the mapped file, and how many do not."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    ranges = [
        [int(end, 16) for end in line.split()[0].split("-")]
        for line in lines
        if line.endswith(".safetensors")
    ]
    assert worker._loaded is not None
    own = {n: p for n, p in worker._loaded.task_model.base.named_parameters() if "lora" not in n}
    mapped = [any(low <= p.data_ptr() < high for low, high in ranges) for p in own.values()]
    return sum(mapped), len(mapped) - sum(mapped)


def small_run(bert: Path, tmp_path: Path, name: str, **settings: object) -> SmallRun:
    config = run_config(bert, tmp_path, num_rows=50, num_clients=5, **settings)
    return SmallRun(config=config, folder=tmp_path / name)


@pytest.mark.usefixtures("ray")
@pytest.mark.parametrize("clients_at_once", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_any_number_of_workers_gives_the_same_run(
    tiny_bert: Path, tmp_path: Path, clients_at_once: int
) -> None:
    """Bit for bit: adapter, metrics, charges."""
    settings = {"privacy": SEEDED, "clients_at_once": clients_at_once}
    expected = outcome(small_run(tiny_bert, tmp_path, "local", **settings).finished())
    for num_workers in (1, 2):
        run = small_run(tiny_bert, tmp_path, f"{num_workers}", **settings)
        workers = WorkersConfig(num_workers=num_workers)
        assert outcome(run.finished(workers=workers)) == expected


@pytest.mark.usefixtures("ray")
def test_a_lost_worker_is_replaced_and_its_clients_pay_again(
    tiny_bert: Path, tmp_path: Path
) -> None:
    import ray

    run = small_run(
        tiny_bert, tmp_path, "lost", privacy={**SEEDED, "target_epsilon": 8.0}, clients_at_once=1
    )

    class Killer(Watcher):
        """Kills the first worker that is given something to do."""

        def __init__(self) -> None:
            super().__init__()
            self.killed: list[int] = []

        def client_started(self, number: int, client: str, num_steps: int) -> None:
            if not self.killed:
                pid = ray.get(simulation.trainer._workers[-1].__ray_call__.remote(process_id))
                self.killed.append(pid)
                os.kill(pid, signal.SIGKILL)

    simulation = run.simulation(watcher=Killer(), workers=TWO)
    simulation.run()
    [note] = [note for note in simulation.notes if "was lost" in note]
    lost = note.split("the worker that trained ")[1].split()[0]
    events = charged(simulation.folder.ledger)
    assert len(simulation.records) == 2
    # It paid twice in the first round, so that its budget does not reach to the second.
    assert {client: len(paid) for client, paid in events.items()} == dict.fromkeys(events, 2)
    assert [lost in record.cohort for record in simulation.records] == [True, False]


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_the_base_model_is_mapped_and_not_copied(tiny_bert: Path, tmp_path: Path) -> None:
    import ray

    run = small_run(tiny_bert, tmp_path, "mapped")
    trainer = RayTrainer(RayWorkers(run.config, TWO), run.assemble(), 2)
    for worker in trainer._workers:
        ray.get(trainer._load(worker))
        mapped, copied = ray.get(worker.__ray_call__.remote(num_mapped))
        assert mapped > 20
        assert copied == 0


@pytest.mark.usefixtures("ray")
def test_another_base_model_at_the_workers_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    run = small_run(tiny_bert, tmp_path, "other")
    assembly = replace(run.assemble(), base_digest="0" * 64)
    job = Job(
        round=1,
        group=("client-00",),
        reservations={"client-00": None},
        coin_seeds={"client-00": 1},
    )
    trainer = RayTrainer(RayWorkers(run.config, TWO), assembly, 2)
    with pytest.raises(ModelError, match="is not the model that the run started with"):
        list(trainer.train(assembly.model.tensors(), iter([job]), Watcher()))  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_running_cluster_is_used_and_left_running(tiny_bert: Path, tmp_path: Path) -> None:
    """As many workers as it has room for; the same results as here."""
    settings = {"privacy": SEEDED, "clients_at_once": 2}
    expected = outcome(small_run(tiny_bert, tmp_path, "local", **settings).finished())
    (tmp_path / "head.py").write_text(HEAD, encoding="utf-8")
    with subprocess.Popen(
        [sys.executable, tmp_path / "head.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    ) as head:
        assert head.stdout is not None
        address = head.stdout.readline().strip()
        run = small_run(tiny_bert, tmp_path, "cluster", **settings)
        code = CLUSTER_RUN.format(root=Path(__file__).parents[1], address=address)
        (tmp_path / "config.json").write_text(run.config.model_dump_json(), encoding="utf-8")
        command = [sys.executable, "-c", code, tmp_path / "config.json", run.folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == f"2 {expected['digest']}"
        assert head.poll() is None
        head.communicate("stop")


HEAD = """
import sys
import ray
context = ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
print(context.address_info["address"], flush=True)
sys.stdin.readline()
ray.shutdown()
"""
CLUSTER_RUN = """
import sys
from pathlib import Path
sys.path.insert(0, "{root}")
import torch
torch.set_num_threads(1)
from fedpeft.config import RunConfig
from fedpeft.types import tensor_digest
from fedpeft.workers import WorkersConfig, started_ray
from tests.federated.small_runs import SmallRun
config = RunConfig.model_validate_json(Path(sys.argv[1]).read_text())
workers = WorkersConfig(num_workers=None, address="{address}")
with started_ray(workers):
    run = SmallRun(config=config, folder=Path(sys.argv[2]))
    simulation = run.simulation(workers=workers)
    simulation.run()
    print(len(simulation.trainer._workers), tensor_digest(simulation.tensors))
"""


@pytest.mark.parametrize(
    "counts",
    [{"num_workers": 0}, {"num_workers": -1}, {"num_workers": 1, "num_threads": 0}],
)
def test_no_worker_is_refused(counts: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="at least one worker"):
        WorkersConfig(**counts)


def test_an_address_without_a_cluster_is_refused() -> None:
    with (
        pytest.raises(ConfigError, match="Ray cannot reach a cluster at nonsense"),
        started_ray(WorkersConfig(num_workers=1, address="nonsense")),
    ):
        pytest.fail("it started")
