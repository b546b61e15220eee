"""The audit of the installed mechanism: honest ones pass, planted bugs are caught."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from fedpeft.dp import checks, mechanism
from fedpeft.dp.accounting import DpSgdEvent
from fedpeft.dp.clipping import ClippedSum
from fedpeft.dp.grid import Grid
from fedpeft.dp.mechanism import DpSgd, NoisyGradient
from fedpeft.dp.randomness import Keystream
from fedpeft.errors import PrivacyError
from fedpeft.federated.audit_mechanism import (
    MechanismAudit,
    audit_mechanism,
    num_mechanism_steps,
)

Plant = Callable[[pytest.MonkeyPatch], None]
ONE_RUN, NOISE = "canaries in one run", "effective noise"


def audit(seed: int = 0, *, num_canaries: int = 4000, **changes: Any) -> MechanismAudit:
    event = DpSgdEvent(
        **{"noise_multiplier": 3.0, "sampling_prob": 0.1, "num_steps": 50, **changes}
    )
    return audit_mechanism(
        event,
        delta=1e-5,
        num_canaries=num_canaries,
        keystream=Keystream.insecure_from_seed(seed),
    )


def failed(found: MechanismAudit) -> set[str]:
    return {failure.partition(":")[0] for failure in found.failures}


def _no_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    def clip_and_sum(grads: dict[str, Tensor], grid: Grid) -> ClippedSum:
        return ClippedSum(
            units={n: (g.double() / grid.step).round().sum(0) for n, g in grads.items()},
            grid=grid,
            num_examples=len(next(iter(grads.values()))),
            num_nonfinite=0,
        )

    monkeypatch.setattr(mechanism, "clip_and_sum", clip_and_sum)


def _half_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = mechanism.add_gaussian_noise
    monkeypatch.setattr(
        mechanism, "add_gaussian_noise", lambda total, sigma, *rest: honest(total, sigma / 2, *rest)
    )


def _double_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = mechanism.poisson_sample
    monkeypatch.setattr(
        mechanism, "poisson_sample", lambda n, prob, stream: honest(n, min(1.0, 2 * prob), stream)
    )


def _no_noise_on_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = mechanism.add_gaussian_noise
    monkeypatch.setattr(
        mechanism,
        "add_gaussian_noise",
        lambda total, *rest: honest(total, *rest) if total.num_examples else total.units,
    )


def _mean_by_realised_size(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = DpSgd.step

    def step(self: DpSgd, to_batches: Any) -> NoisyGradient:
        released = honest(self, to_batches)
        factor = self._config.expected_batch_size / max(1, released.num_examples)
        mean = {name: tensor * factor for name, tensor in released.mean.items()}
        return dataclasses.replace(released, mean=mean)

    monkeypatch.setattr(DpSgd, "step", step)


_BUGS: dict[str, tuple[Plant, set[str]]] = {
    "no clip": (_no_clip, {ONE_RUN, NOISE, "one_example_is_bounded"}),
    "half the noise": (_half_noise, {NOISE, "noise_scale"}),
    "twice the sampling rate": (_double_rate, {NOISE, "batches_are_poisson"}),
    "no noise on empty batches": (_no_noise_on_empty, {"empty_batches_release_noise"}),
    "mean by realised size": (_mean_by_realised_size, {"divisor_is_public"}),
}


@pytest.mark.parametrize("bug", _BUGS)
def test_planted_bug_is_caught(bug: str, monkeypatch: pytest.MonkeyPatch):
    plant, expected = _BUGS[bug]
    plant(monkeypatch)
    catchers = {name: check for name, check in checks.CHECKS.items() if name in expected}
    monkeypatch.setattr(checks, "CHECKS", catchers)
    assert expected <= failed(audit(num_canaries=10_000))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sampling_prob": 1.0, "noise_multiplier": 1.0, "num_steps": 1},
        {"sampling_prob": 0.01, "noise_multiplier": 0.7, "num_steps": 200},
    ],
)
def test_honest_mechanism_passes(changes: dict[str, Any]):
    found = audit(**changes)
    assert found.failures == ()
    assert found.false_alarm < 1e-4
    assert found.one_run.epsilon_lower < found.epsilon_upper
    assert found.effective_noise.epsilon_lower < found.epsilon_upper


@pytest.fixture
def _no_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The black-box checks take most of the time."""
    monkeypatch.setattr(checks, "CHECKS", {})


@pytest.mark.usefixtures("_no_checks")
def test_bounds_are_useful():
    """A third of the truth without assumptions, four fifths for independent canaries."""
    found = audit(noise_multiplier=1.0, num_canaries=10_000)
    assert found.one_run.epsilon_lower > 0.3 * found.epsilon_upper
    assert found.effective_noise.epsilon_lower > 0.8 * found.epsilon_upper


@pytest.mark.slow
@pytest.mark.usefixtures("_no_checks")
def test_honest_mechanism_is_not_accused_in_many_audits():
    audits = [
        audit(seed, num_canaries=1000, noise_multiplier=1.0, num_steps=10) for seed in range(60)
    ]
    assert not any(found.failures for found in audits)
    above = sum(a.effective_noise.epsilon_lower > a.epsilon_upper for a in audits)
    assert above <= 6  # at most 5 % of them, and 6 of 60 has probability 2 %
    assert np.mean([a.one_run.epsilon_lower for a in audits]) > 0


def test_mechanism_that_releases_nothing_usable_is_refuted(monkeypatch: pytest.MonkeyPatch):
    def broken(total: ClippedSum, *_: object) -> dict[str, Tensor]:
        return {name: units * float("nan") for name, units in total.units.items()}

    monkeypatch.setattr(mechanism, "add_gaussian_noise", broken)
    monkeypatch.setattr(checks, "CHECKS", {"noise_scale": checks.CHECKS["noise_scale"]})
    found = audit(num_canaries=100, num_steps=1)
    assert failed(found) == {"noise_scale"}
    assert set(found.scores) == {None}


@pytest.mark.usefixtures("_no_checks")
def test_scores_are_those_of_secret_coins_and_every_step_is_counted():
    event = DpSgdEvent(noise_multiplier=1.0, sampling_prob=1.0, num_steps=7)
    steps: list[int] = []
    found = audit_mechanism(event, delta=1e-5, num_canaries=4500, advanced=steps.append)
    assert len(found.scores) == len(found.included) == 4500
    assert len(steps) == num_mechanism_steps(event, 4500) == 21
    assert 0.45 < np.mean(found.included) < 0.55
    assert found.included != audit_mechanism(event, delta=1e-5, num_canaries=4500).included


def test_too_few_canaries_are_refused():
    with pytest.raises(PrivacyError, match="40 canaries"):
        audit(num_canaries=39)
