"""A batch whose rows have different adapters, against each row alone with its own."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedpeft.errors import AdapterError
from fedpeft.federated.adapted_model import AdaptedModel
from fedpeft.models.dataset import Dataset, collate
from fedpeft.models.model_config import ModelConfig
from fedpeft.serving.adapter_files import AdapterFiles, read_export_folder
from fedpeft.serving.served_model import ServedModel
from fedpeft.types import tensor_digest
from tests.serving.exports import minilm_config, stories_config, write_export

NUM_ADAPTERS = 16
RANKS = (1, 2, 4, 7)
CPU = torch.device("cpu")


def assert_equal(found: Tensor, expected: Tensor) -> None:
    """To 1e-5 of the row's largest logit: in float32 nothing is closer to the exact value."""
    apart = (found[..., : expected.shape[-1]] - expected).abs().max()
    assert apart <= 1e-5 * expected.abs().max()


class Case:
    """A base model, adapters of different ranks, scalings and modules, and a row for each."""

    def __init__(
        self, folder: Path, config: ModelConfig, modules: Sequence[tuple[str, ...]], num_labels: int
    ) -> None:
        self.config = config
        self.models: list[AdaptedModel] = []
        self.files: list[AdapterFiles] = []
        for n in range(NUM_ADAPTERS):
            self.models.append(
                write_export(
                    folder / str(n),
                    config,
                    seed=n,
                    rank=RANKS[n % 4],
                    alpha=(None, 2.0, 16.0)[n % 3],
                    modules=modules[n % len(modules)],
                    labels=tuple(f"label {c}" for c in range(num_labels + n % 3))
                    if num_labels
                    else (),
                )
            )
            self.files.append(read_export_folder(folder / str(n)))
        self.served = ServedModel(config.name, config.task, device="cpu")
        for files in self.files:
            self.served.bank.add(files)
        generator = torch.Generator().manual_seed(0)
        self.rows = [
            torch.randint(3, 500, (3 + 2 * (n % 7),), generator=generator).tolist()
            for n in range(NUM_ADAPTERS)
        ]

    def mixed(self, order: Sequence[int]) -> list[Tensor]:
        with self.served.bank.rows([self.files[n].digest for n in order]):
            return self.served.logits([self.rows[n] for n in order])

    def alone(self, n: int) -> Tensor:
        """By the model that was exported: none of the serving code takes part."""
        dataset = Dataset(input_ids=[self.rows[n]], targets=[0], pad_id=0)
        with torch.inference_mode():
            logits: Tensor = self.models[n].task_model.logits(collate(dataset, [0], CPU))[0]
        return logits


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory, shared_models: Path) -> Case:
    modules = [("q_proj", "v_proj"), ("*_proj",), ("down_proj",), ("layers.3.*.o_proj", "k_proj")]
    return Case(tmp_path_factory.mktemp("stories"), stories_config(shared_models), modules, 0)


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Case:
    modules = [("query", "value"), ("*.dense",), ("key",)]
    return Case(tmp_path_factory.mktemp("minilm"), minilm_config(), modules, 3)


@pytest.fixture(params=["stories", "minilm"])
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.getfixturevalue(request.param)
    return found


def test_sixteen_adapters_in_one_batch_equal_one_by_one(case: Case) -> None:
    found = case.mixed(range(NUM_ADAPTERS))
    for n, logits in enumerate(found):
        expected = case.alone(n)
        assert logits[..., expected.shape[-1] :].isneginf().all()
        assert_equal(logits, expected)


def test_adapters_differ_by_far_more_than_rounding(case: Case) -> None:
    """Else the equality above would say nothing about which adapter a row went through."""
    row = case.rows[0]
    with case.served.bank.rows([files.digest for files in case.files]):
        found = case.served.logits([row] * NUM_ADAPTERS)
    kept = [logits[..., :3] for logits in found]
    for n, logits in enumerate(kept):
        for other in kept[:n]:
            assert (logits - other).abs().max() > 1e-2


def test_order_and_repetition_are_those_of_the_rows(case: Case) -> None:
    order = [5, 5, 0, 15, 2, 5]
    for logits, n in zip(case.mixed(order), order, strict=True):
        expected = case.alone(n)
        assert_equal(logits, expected)


def test_one_adapter_for_all_rows_takes_the_plain_way(case: Case) -> None:
    (logits,) = case.mixed([9])
    assert_equal(logits, case.alone(9))


def test_files_as_read_say_the_same_to_the_last_bit(case: Case) -> None:
    """Otherwise rounding could make another version look nearer after a swap."""
    for n in (0, 6):
        with case.served.bank.alone(case.files[n]):
            (logits,) = case.served.logits([case.rows[n]])
        assert torch.equal(logits, case.mixed([n])[0])
        assert_equal(logits, case.alone(n))
    # What was alone leaves nothing behind.
    (logits,) = case.mixed([1])
    assert_equal(logits, case.alone(1))


def test_the_digest_is_that_of_the_exported_tensors(case: Case) -> None:
    for model, files in zip(case.models, case.files, strict=True):
        assert files.digest == tensor_digest(model.tensors())


def test_an_adapter_that_is_gone_answers_no_more(case: Case) -> None:
    bank = case.served.bank
    case.mixed([3])
    bank.remove(case.files[3].digest)
    try:
        with pytest.raises(AdapterError, match="is not loaded"):
            case.mixed([3])
    finally:
        bank.add(case.files[3])
    assert_equal(case.mixed([3])[0], case.alone(3))
