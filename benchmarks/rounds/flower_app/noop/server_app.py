"""The server: FedAvg over B; A goes down with it in every round, as in fedpeft's rounds."""

import json
import math
import time
from collections.abc import Iterable
from pathlib import Path

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
    ended = []
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord({name: tensors[name] for name in trained}),
        num_rounds=job["num_rounds"],
        timeout=3600,
        train_config=ConfigRecord({"trained": trained}),
        evaluate_fn=lambda number, arrays: ended.append(time.monotonic()),
    )
    # Every client sends B as it came, so that their mean must be what the server sent first.
    off = norm = 0.0
    for name in trained:
        expected = tensors[name].numpy().astype(np.float64)
        off += float(np.square(result.arrays[name].numpy() - expected).sum())
        norm += float(np.square(expected).sum())
    found = {"ended_at": ended, "error": math.sqrt(off / norm)}
    path = Path(str(context.run_config["result"]))
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(found), encoding="utf-8")
    partial.replace(path)
