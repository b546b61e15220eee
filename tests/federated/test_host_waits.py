"""The host queues a whole step and reads nothing back from the device before the release."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fedpeft.dp import mechanism
from fedpeft.dp.mechanism import DpSgd
from fedpeft.federated.local_training import LocalClient, train_locally
from tests.federated.small_runs import SEEDED, SmallRun, run_config

WAITS = ("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.unique")
BY_INDEX = ("aten.index.", "aten.index_put")
KINDS = {"bert": {}, "llama": {"task": "causal-lm", "adapter": {"target_modules": ("*_proj",)}}}


class Waits(TorchDispatchMode):
    """Records the operations between `start` and `stop` for which the host waits on a device."""

    def __init__(self) -> None:
        super().__init__()
        self.on, self.num_operations, self.found = False, 0, []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = str(func)
        indices = args[1] if name.startswith(BY_INDEX) else []
        by_mask = any(isinstance(i, Tensor) and i.dtype == torch.bool for i in indices)
        if self.on:
            self.num_operations += 1
            if name.startswith(WAITS) or by_mask:
                self.found.append(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def marked(
    monkeypatch: pytest.MonkeyPatch, start: Callable[[], None], stop: Callable[[], None]
) -> Iterator[None]:
    """Calls `start` at each draw of a sample and `stop` when all batches of a step are summed."""
    sample, check_rows = DpSgd._sample, mechanism._check_rows

    def starting(self: DpSgd) -> Any:
        start()
        return sample(self)

    def stopping(*args: Any) -> None:
        stop()
        check_rows(*args)

    with monkeypatch.context() as patch:
        patch.setattr(DpSgd, "_sample", starting)
        patch.setattr(mechanism, "_check_rows", stopping)
        yield


def steps(folder: Path, scratch: Path, num_clients: int, **settings: Any) -> Callable[[], object]:
    """Two private steps of some clients together, on several physical batches, some padded."""
    device = settings.pop("device", "cpu")
    config = run_config(
        folder, scratch, privacy=SEEDED, num_rows=60, model_fields={"device": device}, **settings
    )
    simulation = SmallRun(config=config, folder=scratch / "run").simulation()
    simulation.model.set_trainable(("lora_b",))
    names = list(simulation.plan.clients)[:num_clients]

    def run() -> object:
        cohort: list[LocalClient] = [simulation.trainer.local_client(name, 1) for name in names]
        return train_locally(simulation.model, cohort, simulation.federation, max_tokens=40)

    return run


@pytest.mark.parametrize("num_clients", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_reads_nothing_back(
    kind: str,
    num_clients: int,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = steps(request.getfixturevalue(f"tiny_{kind}"), tmp_path, num_clients, **KINDS[kind])
    waits = Waits()

    def switch(on: bool) -> Callable[[], None]:
        return lambda: setattr(waits, "on", on)

    with marked(monkeypatch, switch(True), switch(False)), waits:
        run()
    assert waits.found == []
    assert waits.num_operations > 1000
    # Decisive: the release itself does read, and a mask or a number read in the step is found.
    with marked(monkeypatch, switch(True), lambda: None), waits:
        run()
    assert "aten._local_scalar_dense.default" in waits.found
    waits.found.clear()
    with waits:
        torch.ones(3)[torch.tensor([True, False, True])]
    assert waits.found == ["aten.index.Tensor"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("num_clients", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_cuda_is_not_waited_for(
    kind: str,
    num_clients: int,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = steps(
        request.getfixturevalue(f"tiny_{kind}"),
        tmp_path,
        num_clients,
        device="cuda",
        **KINDS[kind],
    )
    run()  # loads the kernels, for which CUDA waits once

    def mode(name: str) -> Callable[[], None]:
        return lambda: torch.cuda.set_sync_debug_mode(name)

    try:
        with marked(monkeypatch, mode("error"), mode("default")):
            run()
        with (
            marked(monkeypatch, mode("error"), lambda: None),
            pytest.raises(RuntimeError, match="synchroniz"),
        ):
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
