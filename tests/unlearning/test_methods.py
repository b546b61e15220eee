"""What every removal method has to do, on a tiny model."""

from typing import Literal

import pytest
import torch

from fedpeft.errors import ConfigError
from fedpeft.models.base_model import load_base_model
from fedpeft.unlearning.config import UnlearningConfig
from fedpeft.unlearning.low_rank_edit import Successor
from fedpeft.unlearning.methods import METHODS, REQUESTABLE, Removal
from fedpeft.unlearning.plan import CLAIM_OF
from fedpeft.unlearning.unlearn import Deployed
from tests.tiny_models import equal_tensors
from tests.unlearning.test_unlearn import Case

IN_A_JOB = [name for name, method in METHODS.items() if method.place == "job"]


@pytest.fixture(params=["llama", "bert"])
def case(request: pytest.FixtureRequest) -> Case:
    kind: Literal["llama", "bert"] = request.param
    return Case(kind, request.getfixturevalue(f"tiny_{kind}"))


def made(case: Case, name: str, seed: int = 3) -> Successor:
    return METHODS[name].make(
        Removal(
            base=load_base_model(case.model),
            deployed=Deployed(
                model=case.model,
                adapter=case.adapter,
                tensors=case.tensors,
                num_classes=case.classes,
            ),
            forget=case.forget,
            retain=case.retain,
            config=UnlearningConfig(rank=2, num_epochs=2, batch_size=4, learning_rate=1e-2),
            seed=seed,
            refusal=[8, 9],
        )
    )


@pytest.mark.parametrize("name", IN_A_JOB)
def test_a_successor_is_an_adapter_on_the_original_base(case: Case, name: str) -> None:
    before = {key: tensor.clone() for key, tensor in case.tensors.items()}
    found = made(case, name)
    case.opened(found.config, found.tensors)  # fits, and is finite
    assert equal_tensors(case.tensors, before)
    assert 0 <= found.lost <= 1
    changed = (
        case.logits(found.config, found.tensors) - case.logits(case.adapter, case.tensors)
    ).abs()
    assert (float(changed.max()) > 1e-4) == (name != "none")


@pytest.mark.parametrize("name", IN_A_JOB)
def test_a_seed_repeats_it(case: Case, name: str) -> None:
    first, again = (made(case, name).tensors for _ in range(2))
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_retraining_is_no_job(case: Case) -> None:
    with pytest.raises(ConfigError, match="rounds of a run"):
        made(case, "retrain")


def test_what_can_be_asked_for_is_what_a_plan_knows() -> None:
    assert {name: METHODS[name].claim for name in REQUESTABLE} == dict(CLAIM_OF)
