"""One local step by hand: which rows, and what the sum of their gradients is divided by."""

from pathlib import Path

import pytest
import torch

from fedpeft.dp.randomness import Keystream
from fedpeft.dp.sampling import poisson_sample
from fedpeft.errors import PrivacyError
from fedpeft.federated.local_training import LocalClient, train_locally
from fedpeft.models.dataset import collate
from tests.federated.small_runs import OFF, SEEDED, SmallRun, run_config

CPU = torch.device("cpu")


def one_step(bert: Path, tmp_path: Path, probability: float) -> SmallRun:
    config = run_config(
        bert,
        tmp_path,
        privacy=OFF,
        num_clients=1,
        num_rows=12,
        local_steps=1,
        sampling_prob=probability,
        learning_rate=0.5,
        head_learning_rate=0.25,
    )
    return SmallRun(config=config, folder=tmp_path / "run")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_step_sums_the_sample_and_divides_by_the_expected_size(
    tiny_bert: Path, tmp_path: Path, seed: int
) -> None:
    """Never by the size of the sample, which is private."""
    run = one_step(tiny_bert, tmp_path, 0.3)
    assembly = run.assemble()
    model, plan = assembly.model, assembly.plan.clients["client-00"]
    dataset = assembly.datasets["client-00"]
    names = model.set_trainable(["lora_b"])
    start = model.tensors()
    client = LocalClient(plan=plan, dataset=dataset, keystream=Keystream.insecure_from_seed(seed))
    steps: list[int] = []
    [result] = train_locally(
        model, [client], run.config.federation, max_tokens=40, step_finished=steps.append
    )
    assert steps == [1]
    assert result.tensors.keys() == set(names)

    rows = poisson_sample(12, 0.3, Keystream.insecure_from_seed(seed)).tolist()
    assert 0 < len(rows) != 12 * 0.3
    parameters = dict(model.task_model.named_parameters())
    loss = model.task_model.losses(collate(dataset, rows, CPU)).sum() / (12 * 0.3)
    grads = torch.autograd.grad(loss, [parameters[name] for name in names])
    for name, grad in zip(names, grads, strict=True):
        rate = 0.25 if name.startswith("head.") else 0.5
        expected = start[name] - rate * grad
        assert torch.allclose(result.tensors[name], expected, rtol=1e-5, atol=1e-7), name
    assert all(torch.equal(t, start[n]) for n, t in model.tensors().items()), "the model changed"


def test_an_empty_sample_is_a_step_without_gradient(tiny_bert: Path, tmp_path: Path) -> None:
    run = one_step(tiny_bert, tmp_path, 1e-9)
    simulation = run.simulation()
    simulation.model.set_trainable(["lora_b"])
    start = simulation.model.tensors()
    client = simulation.trainer.local_client("client-00", 1)
    [result] = train_locally(simulation.model, [client], run.config.federation, max_tokens=40)
    assert all(torch.equal(tensor, start[name]) for name, tensor in result.tensors.items())


def test_layer_norms_are_trained_privately_one_client_at_a_time(
    tiny_bert: Path, tmp_path: Path
) -> None:
    """From its second step on a client has norms of its own, which the model does not hold."""
    config = run_config(tiny_bert, tmp_path, privacy=SEEDED, num_rows=60, local_steps=3)
    simulation = SmallRun(config=config, folder=tmp_path / "run").simulation()
    model = simulation.model
    model.set_trainable(["lora_b"])
    norms = [m for m in model.task_model.modules() if isinstance(m, torch.nn.LayerNorm)]
    for norm in norms:
        norm.requires_grad_(True)
    cohort = [simulation.trainer.local_client(name, 1) for name in ("client-00", "client-01")]
    start = {name: p.detach().clone() for name, p in model.task_model.named_parameters()}
    [result] = train_locally(model, cohort[:1], simulation.federation, max_tokens=64)
    trained = [name for name in result.tensors if "LayerNorm" in name]
    assert len(trained) == 2 * len(norms)
    assert not any(torch.equal(result.tensors[name], start[name]) for name in trained)
    for name, parameter in model.task_model.named_parameters():
        assert torch.equal(parameter, start[name]), name
        assert not hasattr(parameter, "grad_sample"), name
    with pytest.raises(PrivacyError, match=r"federation\.clients_at_once = 1"):
        train_locally(model, cohort, simulation.federation, max_tokens=64)
