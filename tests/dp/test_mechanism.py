"""The composed mechanism, looked at through what it releases. Legend: N rows, D coordinates."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from torch import Tensor

from fedpeft.dp import mechanism
from fedpeft.dp.checks import CHECKS, Run
from fedpeft.dp.clipping import ClippedSum
from fedpeft.dp.grad_sample import per_example_grads, trainable_parameters
from fedpeft.dp.grid import Grid
from fedpeft.dp.mechanism import (
    CohortBatch,
    DpSgd,
    DpSgdConfig,
    NoisyGradient,
    cohort_step,
)
from fedpeft.dp.noise import standard_normal
from fedpeft.dp.randomness import Keystream
from fedpeft.dp.sampling import poisson_sample
from fedpeft.errors import PrivacyError
from fedpeft.federated.config import FederationConfig
from fedpeft.federated.local_training import LocalClient, train_locally
from fedpeft.federated.plan import ClientPlan
from fedpeft.models.dataset import collate
from tests.dp.models import (
    ODD_VALUES,
    AdaptedHead,
    Given,
    bert,
    given_batches,
    rows_of_tokens,
    run_honest,
    run_in_cohort,
)

Plant = Callable[[pytest.MonkeyPatch], None]


# --- Planted bugs: each is one that a published system had, or a slip away from the code here. ---


def _patch_clip(change: Callable[[dict[str, Tensor], Grid], dict[str, Tensor]]) -> Plant:
    """Sums what `change` makes of the per-example gradients, without any other clipping."""

    def clip_and_sum(grads: dict[str, Tensor], grid: Grid) -> ClippedSum:
        changed = change(grads, grid)
        return ClippedSum(
            units={name: (g.double() / grid.step).round().sum(0) for name, g in changed.items()},
            grid=grid,
            num_examples=len(next(iter(grads.values()))),
            num_nonfinite=0,
        )

    return lambda monkeypatch: monkeypatch.setattr(mechanism, "clip_and_sum", clip_and_sum)


def _scaled(grads: dict[str, Tensor], norm_N: Tensor, grid: Grid) -> dict[str, Tensor]:
    # As in code that writes min(1, C / norm) with a comparison: NaN compares false and passes.
    scale_N1 = torch.where(norm_N > grid.l2_clip_norm, grid.l2_clip_norm / norm_N, 1.0)[:, None]
    return {name: grad * scale_N1 for name, grad in grads.items()}


def _clip_that_nan_passes(grads: dict[str, Tensor], grid: Grid) -> dict[str, Tensor]:
    return _scaled(grads, torch.cat(list(grads.values()), 1).double().norm(dim=1), grid)


def _clip_by_float32_norm(grads: dict[str, Tensor], grid: Grid) -> dict[str, Tensor]:
    finite = {name: grad.nan_to_num(0, 0, 0) for name, grad in grads.items()}
    norm_N = torch.cat(list(finite.values()), 1).square().sum(1).sqrt()
    return _scaled(finite, norm_N.nan_to_num(0, 0, 0), grid)


def _clip_each_tensor(grads: dict[str, Tensor], grid: Grid) -> dict[str, Tensor]:
    finite = {name: grad.double().nan_to_num(0, 0, 0) for name, grad in grads.items()}
    return {
        name: _scaled({name: grad}, grad.norm(dim=1), grid)[name] for name, grad in finite.items()
    }


def _clip_the_sum(grads: dict[str, Tensor], grid: Grid) -> dict[str, Tensor]:
    finite = {name: grad.double().nan_to_num(0, 0, 0) for name, grad in grads.items()}
    total = {name: grad.sum(0, keepdim=True) for name, grad in finite.items()}
    norm_N = torch.cat(list(total.values()), 1).norm(dim=1)
    return _scaled(total, norm_N, grid)


def _patch_noise(change: Callable[..., Mapping[str, Tensor]]) -> Plant:
    honest = mechanism.add_gaussian_noise
    return lambda monkeypatch: monkeypatch.setattr(
        mechanism, "add_gaussian_noise", lambda *args: change(honest, *args)
    )


def _half_noise(honest: Any, total: ClippedSum, multiplier: float, stream: Keystream) -> Any:
    return honest(total, multiplier / 2, stream)


def _no_noise_on_empty(honest: Any, total: ClippedSum, multiplier: float, stream: Keystream) -> Any:
    return honest(total, multiplier, stream) if total.num_examples else total.units


def _noise_on_one_tensor(honest: Any, total: ClippedSum, multiplier: float, stream: Any) -> Any:
    # All tensors are one vector here, the first one in its first half.
    noised, units = honest(total, multiplier, stream), total.units
    return {
        name: torch.cat([value.chunk(2)[0], units[name].chunk(2)[1] * total.grid.step])
        for name, value in noised.items()
    }


def _same_noise_every_step(honest: Any, total: ClippedSum, multiplier: float, _: Any) -> Any:
    return honest(total, multiplier, Keystream.insecure_from_seed(0))


def _same_noise_for_every_tensor(honest: Any, total: ClippedSum, multiplier: float, s: Any) -> Any:
    [(name, units)] = total.units.items()
    half = torch.zeros(units.numel() // 2, dtype=units.dtype)
    noise = honest(dataclasses.replace(total, units={name: half}), multiplier, s)[name]
    return {name: units * total.grid.step + torch.cat([noise, noise])}


def _patch_sampler(sample: Callable[[int, float, np.random.Generator], Any]) -> Plant:
    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        rng = np.random.default_rng(0)
        monkeypatch.setattr(mechanism, "poisson_sample", lambda n, prob, _: sample(n, prob, rng))

    return plant


def _shuffled(num_rows: int, prob: float, rng: np.random.Generator) -> NDArray[np.int64]:
    return np.sort(rng.permutation(num_rows)[: max(1, round(prob * num_rows))])


def _likelier(num_rows: int, prob: float, rng: np.random.Generator) -> NDArray[np.int64]:
    return np.flatnonzero(rng.random(num_rows) < 1.2 * prob)


def _never_empty(num_rows: int, prob: float, rng: np.random.Generator) -> NDArray[np.int64]:
    rows = np.flatnonzero(rng.random(num_rows) < prob)
    return rows if len(rows) else np.zeros(1, np.int64)


def _mean_by_realised_size(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = DpSgd.step

    def step(self: DpSgd, to_batches: Any) -> NoisyGradient:
        released = honest(self, to_batches)
        factor = self._config.expected_batch_size / max(1, released.num_examples)
        mean = {name: tensor * factor for name, tensor in released.mean.items()}
        return dataclasses.replace(released, mean=mean)

    monkeypatch.setattr(DpSgd, "step", step)


def _silent_on_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = DpSgd.step

    def step(self: DpSgd, to_batches: Any) -> NoisyGradient:
        released = honest(self, to_batches)
        if released.num_examples:
            return released
        zeros = {name: torch.zeros_like(tensor) for name, tensor in released.mean.items()}
        return dataclasses.replace(released, mean=zeros)

    monkeypatch.setattr(DpSgd, "step", step)


# Bug → the checks that must catch it.
_BUGS: dict[str, tuple[Plant, set[str]]] = {
    "no clip": (
        _patch_clip(lambda grads, _: {n: g.nan_to_num(0, 0, 0) for n, g in grads.items()}),
        {"one_example_is_bounded", "each_example_is_clipped_alone"},
    ),
    "NaN passes": (_patch_clip(_clip_that_nan_passes), {"nonfinite_counts_as_zero"}),
    "norm overflows": (_patch_clip(_clip_by_float32_norm), {"one_example_is_bounded"}),
    "each tensor clipped alone": (_patch_clip(_clip_each_tensor), {"one_example_is_bounded"}),
    "sum clipped": (_patch_clip(_clip_the_sum), {"each_example_is_clipped_alone"}),
    "half the noise": (_patch_noise(_half_noise), {"noise_scale"}),
    "noise on one tensor": (_patch_noise(_noise_on_one_tensor), {"noise_scale"}),
    "noise repeats": (_patch_noise(_same_noise_every_step), {"noise_is_independent"}),
    "tensors share noise": (_patch_noise(_same_noise_for_every_tensor), {"noise_is_independent"}),
    "no noise on empty batches": (
        _patch_noise(_no_noise_on_empty),
        {"empty_batches_release_noise"},
    ),
    "empty batches skipped": (_silent_on_empty, {"empty_batches_release_noise"}),
    "shuffle instead of Poisson": (_patch_sampler(_shuffled), {"batches_are_poisson"}),
    "sampling_prob too large": (_patch_sampler(_likelier), {"batches_are_poisson"}),
    "realised batch size": (_mean_by_realised_size, {"divisor_is_public"}),
}


@pytest.mark.parametrize("run", [run_honest, run_in_cohort])
@pytest.mark.parametrize("check", CHECKS)
def test_honest_mechanism_passes(check: str, run: Run):
    verdict = CHECKS[check](run)
    assert verdict.passed, verdict.reason


@pytest.mark.parametrize("bug", _BUGS)
def test_planted_bug_is_caught(bug: str, monkeypatch: pytest.MonkeyPatch):
    plant, catchers = _BUGS[bug]
    plant(monkeypatch)
    passed = {name for name in catchers if CHECKS[name](run_honest).passed}
    assert not passed, f"{passed} did not notice: {bug}"


def test_every_check_catches_something():
    assert set().union(*(catchers for _, catchers in _BUGS.values())) == CHECKS.keys()


# --- One step. ---


def _config(**changes: Any) -> DpSgdConfig:
    values = {"num_examples": 10, "expected_batch_size": 5.0, "l2_clip_norm": 1.0}
    return DpSgdConfig(**{**values, "noise_multiplier": 1.0, **changes})


def _step(
    gradients_ND: Tensor, config: DpSgdConfig, *, seed: int = 0, size: int = 4
) -> NoisyGradient:
    model = Given(gradients_ND.shape[1])
    dp = DpSgd(model, config, Keystream.insecure_from_seed(seed))
    return dp.step(lambda rows: given_batches(model, gradients_ND, rows, size))


def test_same_rows_release_the_same_bits_however_they_are_cut():
    gradients_ND = torch.randn(10, 6, generator=torch.Generator().manual_seed(0))
    released = [_step(gradients_ND, _config(), size=size).mean for size in (1, 3, 10)]
    for other in released[1:]:
        for name, tensor in released[0].items():
            assert torch.equal(tensor, other[name])


def test_release_is_float32_in_the_shape_of_the_parameters():
    mean = _step(torch.ones(10, 5), _config()).mean
    assert {name: tuple(tensor.shape) for name, tensor in mean.items()} == {
        "left.weight": (2,),
        "right.weight": (3,),
    }
    assert {tensor.dtype for tensor in mean.values()} == {torch.float32}


def test_noise_covers_the_rounding_to_the_grid():
    """It is scaled by the grid's sensitivity, 0.07 % above the clip norm, and not by the latter."""
    mean = _step(torch.zeros(10, 2000), _config()).mean
    keystream = Keystream.insecure_from_seed(0)
    poisson_sample(10, 0.5, keystream)
    normal = torch.from_numpy(standard_normal(2000, keystream)).split(1000)
    grid = Grid.for_clip_norm(1.0, 2000)

    def error(sensitivity: float) -> float:
        pairs = zip(mean.values(), normal, strict=True)
        return max(float((m - z * sensitivity / 5).abs().max()) for m, z in pairs)

    rounding = grid.step / 2 / 5 + 1e-6
    assert error(grid.sensitivity) <= rounding
    assert error(grid.l2_clip_norm) > 10 * rounding


def test_diagnostics_count_rows():
    gradients_ND = torch.ones(10, 4)
    gradients_ND[[2, 7], 1] = torch.nan
    released = _step(gradients_ND, _config(expected_batch_size=10.0))
    assert (released.num_examples, released.num_nonfinite) == (10, 2)


def test_cohort_releases_what_the_client_alone_would():
    """Bit for bit, whatever the other client's rows are, NaN among them."""
    rows_ND = np.random.default_rng(0).normal(size=(10, 6)).astype(np.float32)
    alone_SD = run_honest(rows_ND, _config(), 5)
    for other in (0.0, 1e30, math.nan):
        others_ND = torch.full((10, 6), other)
        assert np.array_equal(run_in_cohort(rows_ND, _config(), 5, others_ND=others_ND), alone_SD)


@pytest.mark.parametrize(
    ("rows", "owners", "message"),
    [
        ([*range(10), *range(10)], [0] * 11 + [1] * 9, r"client 0 once; they hold 11.*1 repeated"),
        ([*range(11), *range(1, 10)], [0] * 11 + [1] * 9, "client 0 once; they hold 11.*1 not sa"),
        ([0, *range(9), *range(10)], [0] * 10 + [1] * 10, r"hold 10: 1 missing, 0 not.*1 repeated"),
        ([*range(9), 10, *range(10)], [0] * 10 + [1] * 10, "1 missing, 1 not sampled, 0 repeated"),
        ([*range(9), -1, *range(10)], [0] * 10 + [1] * 10, "1 missing, 1 not sampled, 0 repeated"),
        ([*range(10), *range(10)], [0] * 10 + [2] * 10, "a client below 2"),
        ([*range(10), *range(10)], [0] * 10 + [-1] * 10, "a client below 2"),
        ([*range(10), *range(10)], [0] * 10 + [1] * 9, "a client below 2 for each of 20 rows"),
    ],
)
def test_rows_of_another_client_or_of_nobody_are_refused(
    rows: list[int], owners: list[int], message: str
):
    model = Given(4)
    config = _config(expected_batch_size=10.0)
    members = [DpSgd(model, config, Keystream.insecure_from_seed(seed)) for seed in (0, 1)]
    batch = CohortBatch(
        rows=np.array(rows),
        owners=np.array(owners),
        losses=lambda: model.losses(torch.ones(20, 4)),
    )
    with pytest.raises(PrivacyError, match=message):
        cohort_step(members, lambda samples: [batch])


def test_clients_may_be_in_any_order_within_a_batch():
    model, both = Given(4), torch.randn(2, 10, 4, generator=torch.Generator().manual_seed(0))
    rows, owners = np.tile(np.arange(10), 2), np.repeat([0, 1], 10)
    released = []
    for order in (np.arange(20), np.random.default_rng(0).permutation(20)):
        members = [
            DpSgd(model, _config(expected_batch_size=10.0), Keystream.insecure_from_seed(seed))
            for seed in (0, 1)
        ]
        x_ND = both[owners[order], rows[order]]
        batch = CohortBatch(
            rows=rows[order], owners=owners[order], losses=partial(model.losses, x_ND)
        )
        released.append(cohort_step(members, lambda samples, batch=batch: [batch]))
    for left, right in zip(*released, strict=True):
        for name, tensor in left.mean.items():
            assert torch.equal(tensor, right.mean[name])


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(ODD_VALUES),
    st.sampled_from(["input", *AdaptedHead.TRAINED]),
    st.integers(0, 7),
)
def test_release_is_finite_and_the_other_client_sees_nothing(value: float, place: str, at: int):
    """An odd value in a row of one client, or in its own parameters, so in all its rows."""
    model = AdaptedHead()
    config = _config(num_examples=4, expected_batch_size=4.0)

    def released(value: float | None) -> list[Tensor]:
        stacked = {
            name: p.detach().expand(2, *p.shape).clone()
            for name, p in trainable_parameters(model).items()
        }
        x_NTI, targets_N = torch.cat([AdaptedHead.inputs()] * 2), torch.tensor([0, 1, 2, 1] * 2)
        if value is not None:
            odd = x_NTI[6] if place == "input" else stacked[place][1]
            odd.view(-1)[at % odd.numel()] = value
        batch = CohortBatch(
            rows=np.tile(np.arange(4), 2),
            owners=np.repeat([0, 1], 4),
            losses=lambda: model.losses(x_NTI, targets_N),
        )
        members = [DpSgd(model, config, Keystream.insecure_from_seed(seed)) for seed in (0, 1)]
        steps = cohort_step(members, lambda samples: [batch], stacked)
        return [torch.cat([mean.flatten() for mean in step.mean.values()]) for step in steps]

    clean, found = released(None), released(value)
    assert torch.equal(found[0], clean[0])
    assert torch.isfinite(found[1]).all()


@settings(deadline=None)
@given(hnp.arrays(np.float32, (5, 4), elements=st.sampled_from([*ODD_VALUES, 0.3, -2.0])))
def test_nonfinite_rows_release_what_rows_of_zero_would(rows_ND: NDArray[np.float32]):
    """Bit for bit: neither the sum nor the noise knows of them."""
    config = _config(num_examples=5, expected_batch_size=5.0)
    finite_N1 = np.isfinite(rows_ND).all(1, keepdims=True)
    zeroed_ND = np.where(finite_N1, rows_ND, np.float32(0))
    found, expected = (run_honest(rows, config, 1) for rows in (rows_ND, zeroed_ND))
    assert np.isfinite(found).all()
    assert np.array_equal(found, expected)


def test_clients_of_a_cohort_train_one_model():
    members = [DpSgd(Given(4), _config(), Keystream.insecure_from_seed(0)) for _ in range(2)]
    with pytest.raises(PrivacyError, match="one model"):
        cohort_step(members, lambda rows: [])


def test_rows_lost_or_added_by_the_batches_are_refused():
    model, gradients_ND = Given(4), torch.ones(10, 4)
    dp = DpSgd(model, _config(expected_batch_size=10.0), Keystream.insecure_from_seed(0))
    for wrong in (
        lambda rows: rows[:-1],
        lambda rows: np.append(rows, rows[-1]),
        lambda rows: rows[:0],
        lambda rows: np.append(rows[:-1], rows[0]),
    ):
        with pytest.raises(PrivacyError, match="each of the 10 sampled rows of client 0 once"):
            dp.step(lambda rows, wrong=wrong: given_batches(model, gradients_ND, wrong(rows), 4))


def test_other_trainable_tensors_than_at_the_start_are_refused():
    model, gradients_ND = Given(4), torch.ones(10, 4)
    dp = DpSgd(model, _config(expected_batch_size=10.0), Keystream.insecure_from_seed(0))
    model.left.requires_grad_(False)
    with pytest.raises(PrivacyError, match="trainable tensors changed"):
        dp.step(lambda rows: given_batches(model, gradients_ND, rows, 4))
    added = DpSgd(model, _config(expected_batch_size=10.0), Keystream.insecure_from_seed(0))
    model.left.requires_grad_(True)
    with pytest.raises(PrivacyError, match="trainable tensors changed"):
        added.step(lambda rows: given_batches(model, gradients_ND, rows, 4))


def test_model_without_trainable_tensors_is_refused():
    with pytest.raises(PrivacyError, match="no trainable tensor"):
        DpSgd(Given(4).requires_grad_(False), _config(), Keystream.insecure_from_seed(0))


@pytest.mark.parametrize(
    "changes",
    [
        {"num_examples": 0, "expected_batch_size": 0.0},
        {"expected_batch_size": 0.0},
        {"expected_batch_size": 10.5},
        {"expected_batch_size": math.nan},
        {"noise_multiplier": 0.0},
        {"noise_multiplier": math.inf},
    ],
)
def test_config_without_a_guarantee_is_refused(changes: dict[str, Any]):
    with pytest.raises(PrivacyError):
        _config(**changes)


def test_event_is_what_the_mechanism_does():
    event = _config(num_examples=8, expected_batch_size=2.0, noise_multiplier=0.7).event(3)
    assert (event.sampling_prob, event.noise_multiplier, event.num_steps) == (0.25, 0.7, 3)


# --- The whole client step. ---


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_client_step_with_little_noise_is_the_plain_step(seed: int):
    """Same coins, a clip norm above every gradient, noise of 1e-6: rounding is all that differs."""
    model, dataset = bert(), rows_of_tokens([4, 9, 6, 3, 8, 5, 12, 7] * 3)
    start = model.tensors()
    batch = collate(dataset, range(len(dataset)), model.device)
    grads = per_example_grads(model.task_model, 24, lambda: model.task_model.losses(batch))
    norms_N = torch.cat([grad.flatten(1) for grad in grads.values()], 1).norm(dim=1)
    dimension = sum(p.numel() for p in trainable_parameters(model.task_model).values())

    def change(clip_norm: float | None, coins: int) -> Tensor:
        model.load(start)
        dp = None
        if clip_norm is not None:
            dp = DpSgdConfig(
                num_examples=24,
                expected_batch_size=12.0,
                l2_clip_norm=clip_norm,
                noise_multiplier=1e-6,
            )
        client = ClientPlan(
            client_id="a",
            num_examples=24,
            weight=1.0,
            expected_batch_size=12.0,
            num_rounds=1,
            num_steps=1,
            dp=dp,
        )
        federation = FederationConfig(expected_batch_size=12.0, local_steps=1, learning_rate=0.5)
        keystream = Keystream.insecure_from_seed(coins)
        alone = LocalClient(plan=client, dataset=dataset, keystream=keystream)
        [trained] = train_locally(model, [alone], federation, max_tokens=30)
        assert trained.num_nonfinite == 0
        return torch.cat([(t - start[name]).flatten() for name, t in trained.tensors.items()])

    clip_norm = 1.1 * float(norms_N.max())
    plain = change(None, seed)
    error = float((change(clip_norm, seed) - plain).norm())
    # At most 24 rows, each rounded by half a step per coordinate; and float32.
    step = Grid.for_clip_norm(clip_norm, dimension).step
    assert error <= 0.5 / 12 * 24 * step / 2 * dimension**0.5 + 1e-5 * float(plain.norm())
    assert float(plain.norm()) > 100 * error
    # Decisive: other coins, or a clip norm in the middle of the gradients, are far off.
    assert float((change(clip_norm, seed + 10) - plain).norm()) > 20 * error
    assert float((change(float(norms_N.median()), seed) - plain).norm()) > 20 * error
