"""A federated run with one client and no noise is plain training.

Against a loop that shares no code with the package beyond the initial tensors: transformers' own
model, W + s B A put in by `functional_call`, a mean over the tokens, `torch.optim`.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from transformers import AutoModel, AutoTokenizer

from fedpeft.federated.simulation import Simulation
from tests.federated.small_runs import SmallRun, as_float64, run_config

ROUNDS, STEPS, RANK, ALPHA = 3, 4, 4, 6.0


def simulated(
    bert: Path, scratch: Path, dtype: torch.dtype, aggregator: str, init: str, **settings: object
) -> tuple[Simulation, dict[str, Tensor]]:
    """Returns the finished run, and the tensors that it began with."""
    config = run_config(
        bert,
        scratch,
        adapter={"rank": RANK, "alpha": ALPHA, "init": init},
        num_rows=12,
        num_clients=1,
        num_rounds=ROUNDS,
        local_steps=STEPS,
        sampling_prob=1.0,
        aggregator=aggregator,
        **settings,
    )
    run = SmallRun(
        config=config,
        folder=scratch / "run",
        prepare=as_float64 if dtype == torch.float64 else lambda assembly: None,
    )
    start = run.assemble().model.tensors()
    return run.finished(), start


def plainly_trained(
    bert: Path,
    scratch: Path,
    start: Mapping[str, Tensor],
    *,
    trained: tuple[str, ...],
    steps_of_one_optimizer: int,
    lr: float,
    head_lr: float | None = None,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
) -> dict[str, Tensor]:
    rows = [json.loads(line) for line in (scratch / "train.jsonl").read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(bert)
    encoded = tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
    targets = torch.tensor([("cold", "warm").index(row["label"]) for row in rows])
    tensors = {name: tensor.clone() for name, tensor in start.items()}
    dtype = tensors["head.bias"].dtype
    bert_model = AutoModel.from_pretrained(bert).to(dtype).eval().requires_grad_(False)
    leaves = {
        name: tensor.requires_grad_()
        for name, tensor in tensors.items()
        if name.endswith(trained) or name.startswith("head.")
    }
    modules = sorted({n.rpartition(".")[0] for n in tensors if n.startswith("base.")})
    weights = dict(bert_model.named_parameters())
    mask = encoded["attention_mask"].unsqueeze(2)
    for step in range(ROUNDS * STEPS):
        if step % steps_of_one_optimizer == 0:
            groups = [
                {"params": [t for n, t in leaves.items() if n.startswith("base.")], "lr": lr},
                {
                    "params": [t for n, t in leaves.items() if n.startswith("head.")],
                    "lr": head_lr or lr,
                },
            ]
            optimizer = torch.optim.SGD(groups, momentum=momentum, weight_decay=weight_decay)
        adapted = {
            f"{m.removeprefix('base.')}.weight": weights[f"{m.removeprefix('base.')}.weight"]
            + ALPHA / RANK * tensors[f"{m}.lora_b"] @ tensors[f"{m}.lora_a"]
            for m in modules
        }
        hidden = functional_call(bert_model, adapted, kwargs=dict(encoded)).last_hidden_state
        pooled = (hidden * mask).sum(1) / mask.sum(1)
        logits = pooled @ tensors["head.weight"].T + tensors["head.bias"]
        loss = torch.nn.functional.cross_entropy(logits, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: tensor.detach() for name, tensor in tensors.items()}


def difference(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> float:
    """Of all products B·A and the head together, relative."""
    error = reference = 0.0
    for name in right:
        module, _, factor = name.rpartition(".")
        if factor == "lora_a":
            continue
        one, two = (
            t[name].double() @ t[f"{module}.lora_a"].double()
            if factor == "lora_b"
            else t[name].double()
            for t in (left, right)
        )
        error += float((one - two).square().sum())
        reference += float(two.square().sum())
    return math.sqrt(error / reference)


B, A_AND_B = ("lora_b",), ("lora_a", "lora_b")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(
    ("aggregator", "init", "trained"),
    [
        ("ffa-lora", "kaiming", B),
        ("fedavg", "kaiming", A_AND_B),
        ("fedsvd", "orthonormal", B),
        ("frozen-orthonormal", "orthonormal", B),
        ("fedsvd", "principal", B),
    ],
)
def test_one_client_without_noise_is_plain_training(
    tiny_bert: Path,
    tmp_path: Path,
    aggregator: str,
    init: str,
    trained: tuple[str, ...],
    dtype: torch.dtype,
) -> None:
    """SGD without momentum, 3 rounds of 4 full-batch steps: the same 12 steps, to 1e-6."""
    settings = {"learning_rate": 0.2, "head_learning_rate": 0.1, "weight_decay": 0.01}
    found, start = simulated(tiny_bert, tmp_path, dtype, aggregator, init, **settings)
    expected = plainly_trained(
        tiny_bert,
        tmp_path,
        start,
        trained=trained,
        steps_of_one_optimizer=ROUNDS * STEPS,
        lr=0.2,
        head_lr=0.1,
        weight_decay=0.01,
    )
    assert difference(found.tensors, expected) < 1e-6
    assert difference(start, expected) > 0.5, "nothing was trained"


def test_the_optimizer_starts_anew_every_round(tiny_bert: Path, tmp_path: Path) -> None:
    """With momentum one client is plain training whose momentum is dropped after each round."""
    settings = {"learning_rate": 0.05, "momentum": 0.9}
    found, start = simulated(tiny_bert, tmp_path, torch.float64, "ffa-lora", "kaiming", **settings)
    kept, dropped = (
        plainly_trained(
            tiny_bert,
            tmp_path,
            start,
            trained=B,
            steps_of_one_optimizer=steps,
            lr=0.05,
            momentum=0.9,
        )
        for steps in (ROUNDS * STEPS, STEPS)
    )
    assert difference(found.tensors, dropped) < 1e-6
    assert difference(found.tensors, kept) > 0.01
