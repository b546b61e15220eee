"""Rows that join and leave a batch, against each of them alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedpeft.errors import UnavailableError, VerificationError
from fedpeft.models.base_model import load_base_model
from fedpeft.models.model_config import ModelConfig
from fedpeft.serving.adapter_files import AdapterFiles, read_export_folder
from fedpeft.serving.generation import Ended, Event, Failed, GenerationRequest, Generator, Piece
from fedpeft.serving.sampling import Sampling
from fedpeft.serving.served_model import ServedModel
from fedpeft.unlearning.metrics.continuations import continuations
from fedpeft.unlearning.metrics.rounded_weights import rounded_weights
from tests.serving.exports import write_export

MODULES = {"llama": ("q_proj", "down_proj"), "gpt2": ("c_attn", "c_proj")}
PROMPTS = [[7, 8, 9, 10, 11, 12], [13], [20, 21, 22], [9, 9, 9, 9, 9, 9, 9, 9], [15, 16], [7]]
LENGTHS = [5, 9, 2, 7, 12, 1]


@dataclass(kw_only=True)
class Told:
    """What a request heard."""

    events: list[Event] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Piece))

    @property
    def num_tokens(self) -> int:
        return sum(isinstance(event, Piece) for event in self.events)


@dataclass(kw_only=True)
class Case:
    """A tiny model with three adapters."""

    config: ModelConfig
    served: ServedModel
    files: list[AdapterFiles]
    merged: list[Any]

    def request(self, n: int, told: Told, **sampling: Any) -> GenerationRequest:
        return GenerationRequest(
            adapter=self.files[n % 3].digest,
            prompt=PROMPTS[n],
            sampling=Sampling(**{"max_tokens": LENGTHS[n], "temperature": 0, **sampling}),
            emit=told.events.append,
        )

    def expected(self, n: int) -> str:
        """By transformers' own generation with the adapter merged, alone."""
        (said,) = continuations(
            self.merged[n % 3], [PROMPTS[n]], [LENGTHS[n]], pad_id=0, end_ids=[5]
        )
        said = said[:-1] if said[-1:] == [5] else said
        tokenizer = self.served.tokenizer
        before = tokenizer.decode(PROMPTS[n], skip_special_tokens=True)
        whole: str = tokenizer.decode(PROMPTS[n] + said, skip_special_tokens=True)
        return whole[len(before) :]


@pytest.fixture(params=["llama", "gpt2"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    folder: Path = request.getfixturevalue(f"tiny_{request.param}")
    config = ModelConfig(name=str(folder), task="causal-lm", device="cpu")
    served = ServedModel(config.name, "causal-lm", device="cpu")
    files, merged = [], []
    for seed in range(3):
        model = write_export(
            tmp_path / str(seed),
            config,
            seed=seed,
            rank=1 + seed,
            modules=MODULES[request.param],
            strength=0.3,
        )
        files.append(read_export_folder(tmp_path / str(seed)))
        served.bank.add(files[-1])
        model.method.merge(model.task_model)
        merged.append(model.task_model.base)
    return Case(config=config, served=served, files=files, merged=merged)


def finish(generator: Generator, between: Sequence[Any] = ()) -> None:
    """Steps until all is answered, doing something before each step."""
    todo = list(between)
    while generator.has_work() or todo:
        if todo:
            todo.pop(0)()
        generator.step()


@pytest.mark.parametrize("max_rows", [1, 2, 6])
def test_rows_that_join_and_leave_say_what_they_say_alone(case: Case, max_rows: int) -> None:
    """Every request joins at another step, while others are at other lengths."""
    generator = Generator(case.served, max_rows=max_rows, max_waiting=9, max_prompt_tokens=9)
    told = [Told() for _ in PROMPTS]
    joins = [lambda n=n: generator.submit([case.request(n, told[n])]) for n in range(len(PROMPTS))]
    finish(generator, joins)
    expected = [case.expected(n) for n in range(len(PROMPTS))]
    assert [one.text for one in told] == expected
    assert len(set(expected)) >= 5
    assert all(isinstance(one.events[-1], Ended) for one in told)
    assert generator.num_rows == 0


def test_an_end_token_ends_an_answer(case: Case) -> None:
    told = Told()
    generator = Generator(case.served, max_rows=4, max_waiting=4)
    generator.submit([case.request(3, told)])
    finish(generator)
    # Some token of it is made the one that ends answers.
    ids = continuations(case.merged[0], [PROMPTS[3]], [7], pad_id=0)[0]
    end = ids[3]
    case.served.end_ids = frozenset({end})
    again = Told()
    generator.submit([case.request(3, again)])
    finish(generator)
    assert again.num_tokens == ids.index(end) + 1
    assert again.events[-1] == Ended(reason="stop")
    assert told.text.startswith(again.text)


def test_a_row_ends_where_the_model_has_no_more_positions(case: Case) -> None:
    told = Told()
    generator = Generator(case.served, max_rows=4, max_waiting=4)
    case.served.end_ids = frozenset()
    request = case.request(0, told, max_tokens=1000)
    generator.submit([request])
    finish(generator)
    assert told.events[-1] == Ended(reason="length")
    assert told.num_tokens + len(request.prompt) == case.served.longest == 40


def test_a_cancelled_request_leaves_the_others_as_they_are(case: Case) -> None:
    told = [Told() for _ in PROMPTS]
    requests = [case.request(n, told[n]) for n in range(len(PROMPTS))]
    generator = Generator(case.served, max_rows=4, max_waiting=9)
    generator.submit(requests)
    finish(generator, [lambda: None, requests[0].cancel, requests[5].cancel])
    for n in (1, 2, 3, 4):
        assert told[n].text == case.expected(n)
    assert not isinstance(told[0].events[-1], Ended)
    assert told[0].num_tokens < LENGTHS[0]


def test_a_row_with_broken_outputs_fails_alone(case: Case) -> None:
    """What it leaves in its slot reaches nobody, neither now nor later."""
    broken = replace(
        case.files[0],
        digest="b" * 64,
        factors={
            name: (a, torch.full_like(b, math.nan))
            for name, (a, b) in case.files[0].factors.items()
        },
    )
    case.served.bank.add(broken)
    told = [Told() for _ in PROMPTS]
    requests = [case.request(n, told[n]) for n in range(len(PROMPTS))]
    requests[1] = replace(requests[1], adapter=broken.digest)
    generator = Generator(case.served, max_rows=2, max_waiting=9)
    generator.submit(requests)
    finish(generator)
    (failed,) = told[1].events
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, VerificationError)
    for n in (0, 2, 3, 4, 5):
        assert told[n].text == case.expected(n)


def test_a_step_that_fails_fails_its_requests_and_no_later_one(case: Case) -> None:
    told = [Told(), Told(), Told()]
    generator = Generator(case.served, max_rows=4, max_waiting=9)
    unknown = replace(case.request(1, told[1]), adapter="f" * 64)
    generator.submit([case.request(0, told[0])])
    generator.step()
    generator.submit([unknown])
    finish(generator)
    assert isinstance(told[0].events[-1], Failed)
    assert isinstance(told[1].events[-1], Failed)
    generator.submit([case.request(4, told[2])])
    finish(generator)
    assert told[2].text == case.expected(4)


def test_all_requests_hear_of_the_end(case: Case) -> None:
    told = [Told() for _ in PROMPTS]
    generator = Generator(case.served, max_rows=2, max_waiting=9)
    generator.submit([case.request(n, told[n]) for n in range(len(PROMPTS))])
    generator.step()
    generator.fail_all(UnavailableError("stopped"))
    assert sum(isinstance(one.events[-1], Failed) for one in told if one.events) >= 5
    assert all(one.events for one in told)
    with pytest.raises(UnavailableError, match="stopped"):
        generator.submit([case.request(0, Told())])


def test_too_many_wait_and_none_of_them_is_queued(case: Case) -> None:
    generator = Generator(case.served, max_rows=1, max_waiting=2)
    generator.submit([case.request(0, Told())])
    with pytest.raises(UnavailableError, match="try again later"):
        generator.submit([case.request(1, Told()), case.request(2, Told())])
    assert generator.num_waiting == 1


@pytest.mark.parametrize(("precision", "bits"), [("int8", 8), ("int4", 4)])
def test_rounded_weights_are_those_of_the_gate(case: Case, precision: Any, bits: Any) -> None:
    served = ServedModel(case.config.name, "causal-lm", device="cpu", precision=precision)
    assert served.digest == case.served.digest
    base = load_base_model(case.config)
    with torch.inference_mode():
        plain = base(input_ids=torch.tensor([PROMPTS[0]])).logits[0]
        with rounded_weights(base, bits):
            expected = base(input_ids=torch.tensor([PROMPTS[0]])).logits[0]
    (found,) = served.logits([PROMPTS[0]])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (found - plain).abs().max() > 1e-3


def test_half_precision_is_near(case: Case) -> None:
    served = ServedModel(case.config.name, "causal-lm", device="cpu", precision="bfloat16")
    assert served.digest == case.served.digest
    served.bank.add(case.files[1])
    with served.bank.rows([case.files[1].digest]), case.served.bank.rows([case.files[1].digest]):
        (found,), (expected,) = served.logits([PROMPTS[0]]), case.served.logits([PROMPTS[0]])
    apart = (found.log_softmax(-1) - expected.log_softmax(-1)).abs().max()
    assert 0 < apart < 0.2
    told = Told()
    generator = Generator(served, max_rows=2, max_waiting=2)
    generator.submit([replace(case.request(1, told), adapter=case.files[1].digest)])
    finish(generator)
    assert told.num_tokens >= 1
    assert isinstance(told.events[-1], Ended)
