from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedpeft.bench import dp_step, opacus_arms, step_arms
from fedpeft.bench.cases import PRESETS, Case, build_model, random_batch, trained_tensors
from fedpeft.bench.dp_step import MAX_TIME_RATIO, build_arm, run_case
from fedpeft.bench.opacus_arms import OPACUS_GHOST, OPACUS_HOOKS
from fedpeft.bench.schema import CaseReport
from fedpeft.bench.step_arms import FEDPEFT, NON_PRIVATE
from fedpeft.dp import mechanism
from fedpeft.dp.clipping import ClippedSum
from fedpeft.dp.grid import Grid
from fedpeft.errors import ConfigError
from tests.bench.cases import bert_case, gpt2_case, llama_case, settings

_CPU = torch.device("cpu")
_CASES: dict[str, Callable[[Path], Case]] = {
    "tiny_bert": bert_case,
    "tiny_llama": llama_case,
    "tiny_gpt2": gpt2_case,
}


@pytest.fixture(params=_CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return _CASES[request.param](request.getfixturevalue(request.param))


def failed(report: CaseReport) -> list[str]:
    return [check.name for check in report.checks if not check.has_passed]


def test_all_arms_run_and_agree(case: Case):
    report = run_case(case, settings(num_blocks=2))
    assert failed(report) == []
    assert len(report.checks) == 8
    assert [arm.name for arm in report.arms] == [NON_PRIVATE, FEDPEFT, OPACUS_HOOKS, OPACUS_GHOST]
    for arm in report.arms:
        assert len(arm.seconds) == len(arm.cpu_seconds) == 2
        assert arm.metrics["tokens_per_second"] > 0
    targets = [ratio for ratio in report.ratios if ratio.at_most is not None]
    assert [(r.numerator, r.denominator, r.at_most) for r in targets] == [
        (FEDPEFT, NON_PRIVATE, MAX_TIME_RATIO)
    ]


@pytest.mark.parametrize("kind", ["tiny_bert", "tiny_llama"])
def test_half_precision_weights_agree_within_their_own_tolerance(
    kind: str, request: pytest.FixtureRequest
):
    case = _CASES[kind](request.getfixturevalue(kind)).model_copy(update={"dtype": "bfloat16"})
    report = run_case(case, settings())
    assert failed(report) == []
    assert any((check.error or 0) > 1e-4 for check in report.checks), "this ran in float32"


def test_every_arm_trains_b_and_the_head_and_nothing_else(case: Case):
    """A step that forgot a tensor would be a faster one."""
    model = build_model(case, 0, _CPU)
    batch = random_batch(case, model.task_model.base, 0, _CPU)
    own = {name: p.detach().clone() for name, p in model.task_model.named_parameters()}
    for step in (
        step_arms.non_private_step(model, batch),
        step_arms.private_step(model, batch, 1e6),
    ):
        step()
        now = dict(model.task_model.named_parameters())
        changed = {name for name, before in own.items() if not torch.equal(now[name], before)}
        assert changed == set(trained_tensors(model))
        own = {name: p.detach().clone() for name, p in now.items()}
    for name in (OPACUS_HOOKS, OPACUS_GHOST):
        arm = dp_step._opacus_arm(case, name, 0, model, batch, 1e6)
        whole = dict(arm._module.named_parameters())
        before = {key: p.detach().clone() for key, p in whole.items()}
        arm.step()
        changed = {key for key, p in whole.items() if not torch.equal(p, before[key])}
        trained = {key for key, p in whole.items() if any(p is q for q in arm.trained.values())}
        assert changed == trained
        assert arm.trained.keys() == trained_tensors(model).keys()


def test_rows_mixed_up_are_found(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch):
    honest = mechanism.per_example_grads

    def rolled(*arguments: object) -> dict[str, Tensor]:
        return {name: grad.roll(1, 0) for name, grad in honest(*arguments).items()}  # type: ignore[arg-type]

    monkeypatch.setattr(dp_step, "per_example_grads", rolled)
    assert failed(run_case(bert_case(tiny_bert), settings(with_opacus=False))) == [
        "fedpeft: per-example gradients = autograd row by row"
    ]


def test_a_step_without_clipping_is_found(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch):
    def unclipped(grads: Mapping[str, Tensor], grid: Grid) -> ClippedSum:
        units = {name: (grad.sum(0).double() / grid.step).round() for name, grad in grads.items()}
        return ClippedSum(units=units, grid=grid, num_examples=4, num_nonfinite=0)

    monkeypatch.setattr(dp_step, "clip_and_sum", unclipped)
    names = failed(run_case(bert_case(tiny_bert), settings()))
    assert any(name.startswith("fedpeft: clipped sum") for name in names)
    assert f"{OPACUS_GHOST}: clipped sum = that of fedpeft" in names


def test_a_step_without_noise_is_found(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch):
    honest = mechanism.add_gaussian_noise
    quiet: Callable[..., Mapping[str, Tensor]] = lambda total, multiplier, stream: honest(  # noqa: E731
        total, multiplier / 2, stream
    )
    monkeypatch.setattr(mechanism, "add_gaussian_noise", quiet)
    assert failed(run_case(bert_case(tiny_bert), settings(with_opacus=False))) == [
        "fedpeft: released = clipped sum + noise of the stated size"
    ]


def test_another_adapter_in_opacus_is_found(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch):
    """Other B matrices change the hidden states, and so every gradient."""
    honest = opacus_arms.PeftModule.__init__

    def shifted(self: object, *arguments: object) -> None:
        base, case, modules, tensors = arguments
        assert isinstance(tensors, dict)
        moved = {n: t + 0.05 if n.endswith("lora_b") else t for n, t in tensors.items()}
        honest(self, base, case, modules, moved)  # type: ignore[arg-type]

    monkeypatch.setattr(opacus_arms.PeftModule, "__init__", shifted)
    names = failed(run_case(llama_case(tiny_llama), settings()))
    assert names
    assert all(name.startswith("opacus") for name in names)


@pytest.mark.parametrize("name", [NON_PRIVATE, FEDPEFT, OPACUS_HOOKS, OPACUS_GHOST])
def test_an_arm_can_be_built_alone(tiny_bert: Path, name: str):
    """As the process that measures its memory does, from what was pickled."""
    build = partial(build_arm, bert_case(tiny_bert), name, 0, _CPU, 1.0)
    build()()


def test_rows_longer_than_the_model_are_refused(tiny_bert: Path):
    long = bert_case(tiny_bert).model_copy(update={"num_tokens": 41})
    with pytest.raises(ConfigError, match=r"at most 40 tokens, got 41; set --tokens lower"):
        run_case(long, settings())


def test_presets_are_what_they_are_called():
    for name, case in PRESETS.items():
        assert name == case.name
        assert name.endswith(f"-{case.num_rows}x{case.num_tokens}")
