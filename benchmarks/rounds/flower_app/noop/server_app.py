"""The server: FedAvg over B; A goes down with it in every round, as in fedpeft's rounds."""

import json
import math
import socket
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TextIO

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


class WithFrozen(FedAvg):
    """FedAvg whose clients are sent all tensors and send back some."""

    frozen = ArrayRecord()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Adds what is not trained to what is."""
        everything = ArrayRecord({**self.frozen, **arrays})
        return super().configure_train(server_round, everything, config, grid)


@app.main()
def main(grid: Grid, context: Context) -> None:
    job = json.loads(Path(str(context.run_config["job"])).read_text(encoding="utf-8"))
    rng = np.random.default_rng(job["seed"])
    tensors = {
        name: Array(rng.standard_normal(shape, dtype=np.float32))
        for name, shape in job["tensors"].items()
    }
    trained = job["trained"]
    strategy = WithFrozen(
        fraction_evaluate=0.0,
        min_train_nodes=job["num_clients"],
        min_available_nodes=job["num_clients"],
    )
    strategy.frozen = ArrayRecord({n: t for n, t in tensors.items() if n not in trained})
    host, _, port = str(context.run_config["rounds"]).rpartition(":")
    with (
        socket.create_connection((host, int(port))) as connection,
        connection.makefile("rw", encoding="ascii", buffering=1) as harness,
    ):
        result = strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord({name: tensors[name] for name in trained}),
            num_rounds=job["num_rounds"],
            timeout=3600,
            train_config=ConfigRecord({"trained": trained}),
            evaluate_fn=_Between(harness, job["num_rounds"]),
        )
        moved = job["num_rounds"] * float(context.run_config["step"])
        harness.write(f"{_error(result.arrays, tensors, trained, moved)}\n")


class _Between:
    """Is called before the first round and after each; holds the next one until it may begin."""

    def __init__(self, harness: TextIO, num_rounds: int) -> None:
        self._harness = harness
        self._num_rounds = num_rounds
        self._began = time.monotonic()

    def __call__(self, server_round: int, arrays: ArrayRecord) -> None:
        self._harness.write(f"{time.monotonic() - self._began}\n")
        if server_round < self._num_rounds:
            self._harness.readline()
        self._began = time.monotonic()


def _error(
    arrays: ArrayRecord, tensors: Mapping[str, Array], trained: list[str], moved: float
) -> float:
    """In every round each client adds its own step to B, and all of them together the mean."""
    off = norm = 0.0
    for name in trained:
        expected = tensors[name].numpy().astype(np.float64) + moved
        off += float(np.square(arrays[name].numpy() - expected).sum())
        norm += float(np.square(expected).sum())
    return math.sqrt(off / norm)
