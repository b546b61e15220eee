"""From a deployed adapter to its successor, on tiny models of real architectures."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from fedpeft.adapters.config import AdapterConfig
from fedpeft.errors import AdapterError, DataError, DivergedError, ModelError
from fedpeft.federated.adapted_model import AdaptedModel
from fedpeft.models.base_model import load_base_model
from fedpeft.models.dataset import Dataset, collate, concat_datasets
from fedpeft.models.model_config import ModelConfig
from fedpeft.types import tensor_digest
from fedpeft.unlearning.config import UnlearningConfig
from fedpeft.unlearning.forgetting import Step
from fedpeft.unlearning.low_rank_edit import LowRankEdit, Successor
from fedpeft.unlearning.metrics.relearning import relearning_curve, steps_until
from fedpeft.unlearning.objectives import OBJECTIVES
from fedpeft.unlearning.unlearn import Deployed, Progress, unlearn

Kind = Literal["bert", "llama", "gpt2"]
MODULES: dict[str, tuple[str, ...]] = {
    "bert": ("query", "value"),
    "llama": ("q_proj", "v_proj"),
    "gpt2": ("c_attn",),
}
ALL = {"bert": ("*.dense",), "llama": ("*_proj",), "gpt2": ("c_fc", "c_proj")}


def rows(seed: int, num_rows: int, *, classes: int) -> Dataset:
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(6, 30, (6,), generator=generator).tolist() for _ in range(num_rows)]
    targets = [
        int(torch.randint(classes, (1,), generator=generator)) if classes else 3 for _ in ids
    ]
    return Dataset(input_ids=ids, targets=targets, pad_id=0)


@dataclass
class Case:
    """A tiny model with an adapter that was never trained but is not zero either."""

    kind: Kind
    folder: Path

    def __post_init__(self) -> None:
        self.classes = 2 if self.kind == "bert" else 0
        self.forget = rows(1, 8, classes=self.classes)
        self.retain = rows(2, 24, classes=self.classes)
        task = "classification" if self.classes else "causal-lm"
        self.model = ModelConfig(name=str(self.folder), task=task, device="cpu")  # type: ignore[arg-type]
        self.adapter = AdapterConfig(rank=3, alpha=6.0, target_modules=MODULES[self.kind])
        opened = self.opened(self.adapter, None)
        generator = torch.Generator().manual_seed(5)
        self.tensors = {
            name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
            for name, tensor in opened.tensors().items()
        }

    def learn(self) -> None:
        """Trains the adapter on the rows to be forgotten and on the others."""
        model = self.opened(self.adapter, self.tensors)
        relearning_curve(
            model,
            concat_datasets([self.forget, self.retain]),
            num_steps=60,
            learning_rate=2e-2,
            batch_size=32,
            max_tokens=2048,
            seed=0,
        )
        self.tensors = model.tensors()

    def opened(self, adapter: AdapterConfig, tensors: Mapping[str, Tensor] | None) -> AdaptedModel:
        """What any reader of the adapter does: the original base, and the adapter on it."""
        model = AdaptedModel(
            load_base_model(self.model), self.model, adapter, num_classes=self.classes, seed=0
        )
        if tensors is not None:
            model.load(tensors)
        return model

    def unlearn(self, **settings: Any) -> Successor:
        told: list[Progress] = settings.pop("told", [])
        watched = settings.pop("watched", lambda edit, step: None)
        deployed = Deployed(
            model=self.model,
            adapter=self.adapter,
            tensors=self.tensors,
            num_classes=self.classes,
        )
        config = {"rank": 2, "num_epochs": 4, "batch_size": 4, "learning_rate": 1e-2} | settings
        return unlearn(
            load_base_model(self.model),
            deployed,
            self.forget,
            self.retain,
            UnlearningConfig(**config),
            seed=3,
            told=told.append,
            watched=watched,
        )

    def logits(self, adapter: AdapterConfig, tensors: Mapping[str, Tensor]) -> Tensor:
        model = self.opened(adapter, tensors)
        with torch.inference_mode():
            return model.task_model.logits(self.batch(self.retain))

    def loss(self, dataset: Dataset, successor: Successor | None = None) -> float:
        adapter, tensors = (
            (self.adapter, self.tensors)
            if successor is None
            else (successor.config, successor.tensors)
        )
        with torch.inference_mode():
            losses = self.opened(adapter, tensors).task_model.losses(self.batch(dataset))
        return float(losses.mean())

    def batch(self, dataset: Dataset) -> Any:
        return collate(dataset, range(len(dataset)), torch.device("cpu"))


@pytest.fixture(params=["bert", "llama", "gpt2"])
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param, request.getfixturevalue(f"tiny_{request.param}"))


@pytest.fixture
def llama(tiny_llama: Path) -> Case:
    return Case("llama", tiny_llama)


@pytest.mark.parametrize("start", ["importance", "zero"])
@pytest.mark.parametrize("everywhere", [False, True], ids=["own-modules", "all-modules"])
def test_without_a_step_the_successor_computes_what_the_adapter_did(
    case: Case, start: str, everywhere: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the original base: an adapter on the residual of W would compute something else."""
    monkeypatch.setattr("fedpeft.unlearning.unlearn.forget_rows", lambda *a, **k: None)
    modules = (*MODULES[case.kind], *ALL[case.kind]) if everywhere else None
    successor = case.unlearn(start=start, target_modules=modules)
    torch.testing.assert_close(
        case.logits(successor.config, successor.tensors),
        case.logits(case.adapter, case.tensors),
        rtol=0,
        atol=1e-5,
    )
    assert successor.lost == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("bert", "loku"),
        ("gpt2", "loku"),
        *(("llama", name) for name in OBJECTIVES),
    ],
)
def test_rows_that_were_learned_are_forgotten(
    kind: Kind, method: str, request: pytest.FixtureRequest
) -> None:
    case = Case(kind, request.getfixturevalue(f"tiny_{kind}"))
    case.learn()
    successor = case.unlearn(method=method, num_epochs=15)
    gained = case.loss(case.forget, successor) - case.loss(case.forget)
    assert gained > 0.1
    if method != "gradient-ascent":
        assert case.loss(case.retain, successor) - case.loss(case.retain) < gained / 2


def test_the_successor_is_what_was_trained(llama: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scored after the steps on the model that took them, and reloaded on the original base."""
    from fedpeft.unlearning import unlearn as module

    scored: list[Tensor] = []
    steps = module.forget_rows

    def then_score(model: AdaptedModel, *arguments: Any, **settings: Any) -> None:
        steps(model, *arguments, **settings)
        with torch.inference_mode():
            scored.append(model.task_model.logits(llama.batch(llama.retain)))

    monkeypatch.setattr(module, "forget_rows", then_score)
    successor = llama.unlearn()
    torch.testing.assert_close(
        llama.logits(successor.config, successor.tensors), scored[0], rtol=0, atol=1e-4
    )


def test_less_rank_loses_what_it_says(llama: Case) -> None:
    whole = llama.unlearn()
    assert whole.config.rank == 3 + 2 + 2
    assert whole.lost == pytest.approx(0.0, abs=1e-6)
    small = llama.unlearn(result_rank=3)
    assert small.config.rank == 3
    assert 0.001 < small.lost < 1


def test_a_seed_repeats_and_physical_batches_change_nothing(llama: Case) -> None:
    first = llama.unlearn(method="npo")
    llama.model = llama.model.model_copy(update={"max_tokens_per_batch": 13})
    again = llama.unlearn(method="npo")
    for (a, b), (c, d) in zip(pairs(first), pairs(again), strict=True):
        torch.testing.assert_close(b @ a, d @ c, rtol=0, atol=1e-5)


def pairs(successor: Successor) -> list[tuple[Tensor, Tensor]]:
    names = [name for name in successor.tensors if name.endswith("lora_a")]
    found = successor.tensors
    return [(found[n], found[n.replace("lora_a", "lora_b")]) for n in names]


def test_progress_is_told(llama: Case) -> None:
    told: list[Progress] = []
    llama.unlearn(told=told)
    importance = [p for p in told if p.phase == "importance"]
    steps = [p for p in told if p.phase == "steps"]
    assert (importance[-1].done, importance[-1].total) == (32, 32)
    assert [p.done for p in steps] == list(range(1, 9))
    assert all(p.total == 8 and p.step is not None for p in steps)


def test_a_watcher_sees_each_change_and_may_end_it(llama: Case) -> None:
    seen: list[str] = []

    def watched(edit: LowRankEdit, step: Step) -> None:
        assert step.number == len(seen) + 1
        seen.append(tensor_digest(edit.successor().tensors))

    successor = llama.unlearn(watched=watched)
    assert len(set(seen)) == 8
    assert seen[-1] == tensor_digest(successor.tensors)

    class EnoughError(Exception):
        pass

    again: list[str] = []

    def ends(edit: LowRankEdit, step: Step) -> None:
        again.append(tensor_digest(edit.successor().tensors))
        if step.number == 3:
            raise EnoughError

    with pytest.raises(EnoughError):
        llama.unlearn(watched=ends)
    assert again == seen[:3]


def test_what_cannot_be_is_refused(llama: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="matches no linear module"):
        llama.unlearn(target_modules=("nothing",))
    with pytest.raises(AdapterError, match=r"does not fit|larger than"):
        llama.unlearn(rank=1000)
    with pytest.raises(DivergedError, match="learning rate"):
        llama.unlearn(method="gradient-ascent", learning_rate=1e30)
    retain, forget = llama.retain, llama.forget
    llama.retain = retain.take([])
    with pytest.raises(DataError, match="rows"):
        llama.unlearn()
    llama.retain, llama.forget = retain, forget.take([])
    with pytest.raises(DataError, match="no rows"):
        llama.unlearn()
    llama.forget = retain.take([4, 7])
    with pytest.raises(DataError, match="2 rows are to be forgotten and to be kept"):
        llama.unlearn()


def test_what_was_hidden_comes_back_sooner_than_what_was_never_there(llama: Case) -> None:
    """Rows that the adapter was trained on, hidden by a change of the output alone."""

    def curve(model: AdaptedModel, seed: int = 0) -> list[float]:
        return relearning_curve(
            model,
            llama.forget,
            num_steps=40,
            learning_rate=1e-2,
            batch_size=8,
            max_tokens=2048,
            seed=seed,
        )

    never = curve(llama.opened(llama.adapter, llama.tensors))
    trained = llama.opened(llama.adapter, llama.tensors)
    losses = curve(trained, seed=1)
    assert losses[-1] < losses[0]
    target = (never[0] + losses[-1]) / 2
    generator = torch.Generator().manual_seed(2)
    hidden = {
        name: tensor + 0.03 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in trained.tensors().items()
    }
    stopped = relearning_curve(
        llama.opened(llama.adapter, llama.tensors),
        llama.forget,
        num_steps=40,
        learning_rate=1e-2,
        batch_size=8,
        max_tokens=2048,
        seed=0,
        target=never[4],
    )
    assert stopped == never[: len(stopped)]
    assert len(stopped) <= 5
    back, anew = (
        steps_until(curve(llama.opened(llama.adapter, hidden)), target),
        steps_until(never, target),
    )
    assert back is not None
    assert anew is not None
    assert back < anew
    assert steps_until(never, -1.0) is None
