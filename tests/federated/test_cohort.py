"""Several clients in one forward and backward pass equal each client alone."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from fedpeft.errors import PrivacyError
from fedpeft.federated.local_training import LocalClient, train_locally
from fedpeft.federated.simulation import Stopped
from tests.federated.small_runs import OFF, SEEDED, SmallRun, outcome, run_config, stop_after

SKEWED = {"partition": "dirichlet", "dirichlet_alpha": 0.3}


def finished(model: Path, folder: Path, clients_at_once: int, **settings: object) -> SmallRun:
    config = run_config(model, folder, clients_at_once=clients_at_once, **settings)
    config = config.model_copy(
        update={"data": config.data.model_copy(update=SKEWED)}
        if config.model.task == "classification"
        else {}
    )
    return SmallRun(config=config, folder=folder / f"run-{clients_at_once}")


@pytest.mark.parametrize("privacy", [SEEDED, OFF], ids=["private", "plain"])
@pytest.mark.parametrize(
    "settings",
    [
        {"aggregator": "fedsvd"},
        {"aggregator": "fedavg", "momentum": 0.9, "learning_rate": 0.1},
        {"aggregator": "fedsvd", "optimizer": "adam", "learning_rate": 0.01},
    ],
    ids=["fedsvd", "fedavg-momentum", "adam"],
)
def test_together_equals_alone(
    tiny_bert: Path, tmp_path: Path, privacy: Mapping[str, object], settings: Mapping[str, object]
) -> None:
    """Unequal clients, equal coins: the adapter after two rounds to 1e-5, ε exactly."""
    runs = {}
    for size in (1, 2, 3):
        run = finished(tiny_bert, tmp_path, size, privacy=privacy, num_rows=60, **settings)
        runs[size] = run.finished()
    sizes = {client.num_examples for client in runs[1].plan.clients.values()}
    assert len(sizes) == 3, "the clients should be unequal"
    for size in (2, 3):
        for name, tensor in runs[1].tensors.items():
            torch.testing.assert_close(runs[size].tensors[name], tensor, rtol=1e-5, atol=1e-5)
        assert [r.epsilon for r in runs[size].records] == [r.epsilon for r in runs[1].records]


def test_together_equals_alone_for_a_causal_lm(tiny_llama: Path, tmp_path: Path) -> None:
    one, all_ = (
        finished(
            tiny_llama,
            tmp_path,
            size,
            privacy=SEEDED,
            task="causal-lm",
            adapter={"target_modules": ("*_proj",)},
        ).finished()
        for size in (1, 3)
    )
    for name, tensor in one.tensors.items():
        torch.testing.assert_close(all_.tensors[name], tensor, rtol=1e-5, atol=1e-5)


def test_clients_do_not_share_coins_or_parameters(tiny_bert: Path, tmp_path: Path) -> None:
    """A client's result does not depend on whom it trains with: swap the other one's rows."""
    run = finished(tiny_bert, tmp_path, 3, privacy=SEEDED, num_rows=60)
    assembly = run.assemble()
    model, federation = assembly.model, run.config.federation
    model.set_trainable(("lora_b",))
    simulation = run.simulation()
    results = []
    for partner in ("client-01", "client-02"):
        cohort = [
            simulation.trainer.local_client(c, i) for i, c in enumerate(("client-00", partner))
        ]
        results.append(train_locally(model, cohort, federation, max_tokens=64))
    for name, tensor in results[0][0].tensors.items():
        torch.testing.assert_close(results[1][0].tensors[name], tensor, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(results[1][1].tensors[name], results[0][1].tensors[name])


def test_groups_are_stopped_and_resumed_bit_for_bit(tiny_bert: Path, tmp_path: Path) -> None:
    def run(name: str) -> SmallRun:
        return finished(tiny_bert, tmp_path / name, 2, privacy=SEEDED)

    expected = outcome(run("whole").finished())
    for stop in range(4):  # 2 rounds of groups of 2 and 1
        stopped = run(f"stop-{stop}")
        with pytest.raises(Stopped):
            stopped.finished(stop_requested=stop_after(stop))
        assert outcome(stopped.finished()) == expected


def test_private_and_plain_clients_do_not_mix(tiny_bert: Path, tmp_path: Path) -> None:
    private = finished(tiny_bert, tmp_path / "a", 3, privacy=SEEDED).simulation()
    plain = finished(tiny_bert, tmp_path / "b", 3, privacy=OFF).simulation()
    cohort: list[LocalClient] = [
        private.trainer.local_client("client-00", 1),
        plain.trainer.local_client("client-01", 1),
    ]
    private.model.set_trainable(("lora_b",))
    with pytest.raises(PrivacyError, match="cannot train in one cohort"):
        train_locally(private.model, cohort, private.federation, max_tokens=64)
