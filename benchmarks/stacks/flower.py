"""The server's half of both Flower arms: FedAvg over all clients, one evaluation at the end."""

import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib import metadata

# Read when Flower and Ray are imported: nothing is sent anywhere, nothing is written to HOME.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, Result
from flwr.simulation import run_simulation
from job import STARTED, Job, write_result
from job import Result as JobResult

PACKAGES = ("flwr", "ray", "opacus", "peft", "transformers", "torch")
Tensors = Mapping[str, torch.Tensor]


def total(replies: list[RecordDict], weighted_by: str = "") -> MetricRecord:
    """Sums what the clients report; of the times at which they started, the first."""
    sums: dict[str, float] = {}
    for name in replies[0]["metrics"]:
        values = [reply["metrics"][name] for reply in replies]
        sums[name] = min(values) if name == "started-at" else sum(values)
    return MetricRecord(sums)


def run(
    client_app: ClientApp,
    job: Job,
    job_path: str,
    result_path: str,
    *,
    initial: Callable[[], Tensors],
    accuracy: Callable[[Tensors], float],
    num_actors: int,
    choices: Mapping[str, str],
) -> None:
    """Simulates the whole run with `num_actors` Ray actors and writes RESULT.json.

    Args:
        client_app: The client's half.
        job: What to run.
        job_path: Where the clients read it.
        result_path: Where the result goes.
        initial: Makes the tensors that are sent in the first round.
        accuracy: Scores the final tensors on the held-out rows.
        num_actors: Clients that train side by side; they share the job's CPUs evenly.
        choices: What the stack chose, in words.
    """
    torch.set_num_threads(job.num_cpus)
    finished: list[Result] = []
    clock: dict[str, float] = {}
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            if server_round < job.num_rounds:
                return None
            clock["evaluation"] = time.monotonic()
            return MetricRecord({"accuracy": accuracy(arrays.to_torch_state_dict())})

        strategy = FedAvg(
            fraction_train=1.0,
            fraction_evaluate=0.0,
            min_train_nodes=len(job.clients),
            min_available_nodes=len(job.clients),
            train_metrics_aggr_fn=total,
        )
        arrays = ArrayRecord(dict(initial()))
        result = strategy.start(
            grid=grid,
            initial_arrays=arrays,
            num_rounds=job.num_rounds,
            timeout=24 * 3600,
            train_config=ConfigRecord({"job": job_path}),
            evaluate_fn=evaluate,
        )
        clock["end"] = time.monotonic()
        before, after = arrays.to_torch_state_dict(), result.arrays.to_torch_state_dict()
        clock["delta_norm"] = math.sqrt(
            sum(float((after[name] - before[name]).square().sum()) for name in before)
        )
        finished.append(result)

    with tempfile.TemporaryDirectory() as home:
        os.environ["FLWR_HOME"] = home
        run_simulation(
            server_app,
            client_app,
            num_supernodes=len(job.clients),
            backend_config={
                "init_args": {"num_cpus": job.num_cpus},
                "client_resources": {"num_cpus": job.num_cpus / num_actors, "num_gpus": 0.0},
            },
        )
    rounds = finished[0].train_metrics_clientapp.values()
    sums = total([RecordDict({"metrics": metrics}) for metrics in rounds])
    threads = sums["num-threads"] / (len(job.clients) * job.num_rounds)
    write_result(
        result_path,
        JobResult(
            seconds={
                "startup": sums["started-at"] - STARTED,
                "rounds": clock["evaluation"] - sums["started-at"],
                "evaluation": clock["end"] - clock["evaluation"],
                "setup_of_all_clients": sums["setup-s"],
                "training_of_all_clients": sums["training-s"],
            },
            num_examples=int(sums["num-rows"]),
            num_tokens=int(sums["num-tokens"]),
            num_padded_tokens=int(sums["num-padded-tokens"]),
            accuracy=finished[0].evaluate_metrics_serverapp[job.num_rounds]["accuracy"],
            delta_norm=clock["delta_norm"],
            stack={
                **{name: metadata.version(name) for name in PACKAGES},
                "actors": f"{num_actors}, {threads:g} torch thread(s) each",
                **choices,
            },
        ),
    )
