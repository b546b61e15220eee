"""FedSVD only rotates A inside its first row space: under SGD it is a frozen orthonormal A.

Through the real local training, without privacy: three clients of unequal size, Poisson batches,
four local steps a round, a trained head. Under Adam, which scales each coordinate of B on its own,
the rotation matters and FedSVD is another method.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedpeft.adapters.config import AdapterConfig
from fedpeft.adapters.initializers import Init
from fedpeft.adapters.lora import lora_pairs
from fedpeft.dp.config import PrivacyConfig
from fedpeft.dp.randomness import Keystream
from fedpeft.federated.adapted_model import AdaptedModel, head_tensors
from fedpeft.federated.aggregators import AGGREGATORS
from fedpeft.federated.config import FederationConfig
from fedpeft.federated.local_training import LocalClient, train_locally
from fedpeft.federated.plan import plan_run
from fedpeft.models.base_model import load_base_model
from fedpeft.models.model_config import ModelConfig
from fedpeft.types import derive_seed
from tests.tiny_models import random_dataset

ROUNDS = 5
SIZES = {"a": 10, "b": 20, "c": 15}


def rounds(
    bert: Path, aggregator_name: str, init: Init, dtype: torch.dtype, **federation: object
) -> list[Mapping[str, Tensor]]:
    """The adapter after each round."""
    model_config = ModelConfig(name=str(bert), task="classification", device="cpu")
    adapter = AdapterConfig(rank=4, alpha=6.0, target_modules=("query", "value"), init=init)
    model = AdaptedModel(
        load_base_model(model_config), model_config, adapter, num_classes=2, seed=0
    )
    model.task_model.to(dtype)
    config = FederationConfig.model_validate(
        {"num_clients": 3, "num_rounds": ROUNDS, "local_steps": 4, "sampling_prob": 0.5}
        | federation
    )
    datasets = {client: random_dataset(n, seed=n) for client, n in SIZES.items()}
    clients = plan_run(SIZES, config, PrivacyConfig(enabled=False)).clients
    aggregator = AGGREGATORS[aggregator_name]
    model.set_trainable(aggregator.trained_factors)
    tensors: Mapping[str, Tensor] = model.tensors()
    history = []
    for number in range(ROUNDS):
        updates = []
        for client_id, client in clients.items():
            model.load(tensors)
            keystream = Keystream.insecure_from_seed(derive_seed(1, number, client_id))
            alone = LocalClient(plan=client, dataset=datasets[client_id], keystream=keystream)
            [result] = train_locally(model, [alone], config, max_tokens=64)
            updates.append(result.tensors)
        weights = [client.weight for client in clients.values()]
        tensors = aggregator.aggregate(tensors, updates, weights).tensors
        history.append(tensors)
    return history


def difference(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> float:
    """Of all products B·A together, relative."""
    error = reference = 0.0
    pairs = lora_pairs(right)
    for module, (a, b) in lora_pairs(left).items():
        expected = pairs[module][1].double() @ pairs[module][0].double()
        error += float((b.double() @ a.double() - expected).square().sum())
        reference += float(expected.square().sum())
    return math.sqrt(error / reference)


SGD = {"learning_rate": 0.5}
MOMENTUM = {"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.01, "head_learning_rate": 0.05}


@pytest.mark.parametrize("init", ["kaiming", "orthonormal"])
@pytest.mark.parametrize(
    ("settings", "dtype"),
    [(SGD, torch.float64), (MOMENTUM, torch.float64), (MOMENTUM, torch.float32)],
    ids=["sgd-float64", "momentum-float64", "momentum-float32"],
)
def test_fedsvd_is_a_frozen_orthonormal_a_under_sgd(
    tiny_bert: Path, init: Init, settings: dict[str, float], dtype: torch.dtype
) -> None:
    fedsvd = rounds(tiny_bert, "fedsvd", init, dtype, **settings)
    frozen = rounds(tiny_bert, "frozen-orthonormal", init, dtype, **settings)
    for left, right in zip(fedsvd, frozen, strict=True):
        assert difference(left, right) < 1e-6
        for name, tensor in head_tensors(right).items():
            assert torch.allclose(left[name], tensor, rtol=1e-5, atol=1e-6)
    # The factors themselves differ, and the training went somewhere.
    last = ROUNDS - 1
    assert any(
        not torch.allclose(fedsvd[last][n].abs(), frozen[last][n].abs(), atol=1e-3)
        for n in fedsvd[last]
        if n.endswith("lora_a")
    )
    assert difference(fedsvd[last], fedsvd[0]) > 0.1


@pytest.mark.parametrize("init", ["kaiming", "orthonormal"])
def test_fedsvd_is_another_method_under_adam(tiny_bert: Path, init: Init) -> None:
    settings = {"optimizer": "adam", "learning_rate": 0.01}
    fedsvd = rounds(tiny_bert, "fedsvd", init, torch.float64, **settings)
    frozen = rounds(tiny_bert, "frozen-orthonormal", init, torch.float64, **settings)
    assert difference(fedsvd[0], frozen[0]) < 1e-6, "round 1 starts from the same A"
    assert difference(fedsvd[-1], frozen[-1]) > 0.1


def test_ffa_from_a_kaiming_start_is_another_method(tiny_bert: Path) -> None:
    """Its A keeps its uneven row norms, which scale the learning rate of each rank."""
    fedsvd = rounds(tiny_bert, "fedsvd", "kaiming", torch.float64, **SGD)
    ffa = rounds(tiny_bert, "ffa-lora", "kaiming", torch.float64, **SGD)
    assert difference(fedsvd[-1], ffa[-1]) > 0.1
