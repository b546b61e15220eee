"""The client-level mechanism, looked at through what it releases. Legend: D coordinates."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedpeft.dp import client_level
from fedpeft.dp.accounting import epsilon
from fedpeft.dp.checks import variance_interval
from fedpeft.dp.client_level import ClientLevel, ClientLevelConfig, NoisyUpdate
from fedpeft.dp.clipping import ClippedSum
from fedpeft.dp.events import ClientUpdateEvent
from fedpeft.dp.grid import Grid
from fedpeft.dp.randomness import Keystream
from fedpeft.errors import PrivacyError

SHAPES = {"lora_b": torch.Size([4, 3]), "head": torch.Size([5])}
DIMENSION = 17
CLIP = 0.7


def _mechanism(
    sigma: float = 1.5, clients: int = 4, seed: int = 0, shapes: Mapping[str, torch.Size] = SHAPES
) -> ClientLevel:
    config = ClientLevelConfig(
        num_clients_per_round=clients, l2_clip_norm=CLIP, noise_multiplier=sigma
    )
    return ClientLevel(shapes, config, Keystream.insecure_from_seed(seed))


def _update(seed: int, scale: float = 1.0) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(shape, generator=rng) for name, shape in SHAPES.items()}


def _flat(released: Mapping[str, Tensor]) -> NDArray[np.float64]:
    return np.concatenate([released[name].double().numpy().ravel() for name in SHAPES])


def _summed(updates: Sequence[Mapping[str, Tensor]], monkeypatch: Any) -> NDArray[np.float64]:
    """The exact sum before noise, in units of one client."""
    monkeypatch.setattr(client_level, "add_gaussian_noise", lambda total, *_: _values(total))
    return _flat(_mechanism().release(updates).mean) * 4


def _values(total: ClippedSum) -> dict[str, Tensor]:
    return {name: units * total.grid.step for name, units in total.units.items()}


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 1e6, 1e30, math.nan, math.inf])
def test_zeroing_one_client_moves_the_sum_by_at_most_the_sensitivity(
    scale: float, monkeypatch: pytest.MonkeyPatch
):
    others = [_update(1), _update(2, 0.01), _update(3, 1e3)]
    sensitivity = Grid.for_clip_norm(CLIP, DIMENSION).sensitivity
    moved = _summed([*others, _update(0, scale)], monkeypatch) - _summed(others, monkeypatch)
    norm = float(np.linalg.norm(moved))
    assert norm <= sensitivity * (1 + 1e-6)  # float32 of the released mean
    if 1 <= scale < math.inf:
        assert norm >= 0.99 * CLIP  # else the test would pass on nothing
    if not math.isfinite(scale):
        assert norm == 0


def test_all_tensors_are_clipped_together(monkeypatch: pytest.MonkeyPatch):
    update = _update(0, 10.0)
    whole = np.linalg.norm(_flat(update))
    clipped = _summed([update], monkeypatch)
    np.testing.assert_allclose(clipped, _flat(update) * CLIP / whole, atol=1e-3 * CLIP)


def test_small_updates_are_summed_unchanged(monkeypatch: pytest.MonkeyPatch):
    updates = [_update(seed, 0.01) for seed in range(4)]
    expected = sum(_flat(update) for update in updates)
    step = Grid.for_clip_norm(CLIP, DIMENSION).step
    assert np.abs(_summed(updates, monkeypatch) - expected).max() <= 4 * step / 2 + 1e-6


def test_the_sum_is_exact_in_any_order(monkeypatch: pytest.MonkeyPatch):
    updates = [_update(seed, 10.0**seed) for seed in range(4)]
    forward = _summed(updates, monkeypatch)
    assert np.array_equal(forward, _summed(updates[::-1], monkeypatch))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_update_that_is_not_finite_counts_as_zero(value: float):
    poisoned = _update(0)
    poisoned["head"][2] = value
    honest = _mechanism().release([_update(1)])
    both = _mechanism().release([poisoned, _update(1)])
    assert np.array_equal(_flat(both.mean), _flat(honest.mean))
    assert (both.num_updates, both.num_nonfinite) == (2, 1)


def test_a_missing_client_counts_as_zero_and_the_divisor_stays():
    zero = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    alone = _mechanism().release([_update(1)])
    full = _mechanism().release([_update(1), zero, zero, zero])
    assert np.array_equal(_flat(alone.mean), _flat(full.mean))
    halved = _mechanism(clients=8).release([_update(1)])
    np.testing.assert_allclose(2 * _flat(halved.mean), _flat(alone.mean), rtol=1e-6)


def _noise(released: Sequence[NoisyUpdate]) -> NDArray[np.float64]:
    return np.array([_flat(one.mean) for one in released])


def test_noise_has_the_stated_scale_also_when_nobody_answers():
    """Accepts sigma and rejects 2/3 and 3/2 of it, in each tensor."""
    sigma, clients = 1.5, 4
    mechanism = _mechanism(sigma, clients)
    noise_SD = _noise([mechanism.release([]) for _ in range(300)])
    stated = sigma * Grid.for_clip_norm(CLIP, DIMENSION).sensitivity / clients
    for part in (noise_SD[:, :12], noise_SD[:, 12:]):
        low, high = variance_interval(part.size)
        for factor, accepted in ((1.0, True), (2 / 3, False), (3 / 2, False)):
            ratio = float(np.mean((part / (factor * stated)) ** 2))
            assert (low <= ratio <= high) is accepted, (factor, ratio)
    # No coordinate and no round repeats another.
    assert np.abs(np.corrcoef(noise_SD.T) - np.eye(DIMENSION)).max() < 6 / math.sqrt(300)
    assert len(np.unique(noise_SD, axis=0)) == 300


def test_noise_hides_nothing_but_is_added_to_updates_too():
    sigma = 1.5
    mechanism = _mechanism(sigma)
    update = _update(0, 0.01)
    released_SD = _noise([mechanism.release([update]) for _ in range(300)]) - _flat(update) / 4
    stated = sigma * Grid.for_clip_norm(CLIP, DIMENSION).sensitivity / 4
    low, high = variance_interval(released_SD.size)
    assert low <= float(np.mean((released_SD / stated) ** 2)) <= high
    assert abs(released_SD.mean()) < 5 * stated / math.sqrt(released_SD.size)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_updates_of_any_floating_type(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    update = {name: value.to(dtype) for name, value in _update(0, 0.01).items()}
    step = Grid.for_clip_norm(CLIP, DIMENSION).step
    assert np.abs(_summed([update], monkeypatch) - _flat(update)).max() <= step / 2 + 1e-6


def _without_head(update: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"lora_b": update["lora_b"]}


def _transposed(update: dict[str, Tensor]) -> dict[str, Tensor]:
    return update | {"lora_b": update["lora_b"].T}


def _with_bias(update: dict[str, Tensor]) -> dict[str, Tensor]:
    return update | {"bias": torch.zeros(1)}


@pytest.mark.parametrize("change", [_without_head, _transposed, _with_bias])
def test_updates_of_other_tensors_are_refused(change: Any):
    with pytest.raises(PrivacyError, match="other tensors"):
        _mechanism().release([_update(1), change(_update(0))])


def test_more_updates_than_clients_are_refused():
    with pytest.raises(PrivacyError, match="a round has 4 clients, but 5 updates came"):
        _mechanism().release([_update(seed) for seed in range(5)])


def test_nothing_to_train_is_refused():
    with pytest.raises(PrivacyError, match="no trainable tensor"):
        _mechanism(shapes={})


@pytest.mark.parametrize(
    "changes",
    [
        {"num_clients_per_round": 0},
        {"num_clients_per_round": 2.5},
        {"num_clients_per_round": True},
        {"l2_clip_norm": 0.0},
        {"l2_clip_norm": math.nan},
        {"l2_clip_norm": math.inf},
        {"noise_multiplier": 0.0},
        {"noise_multiplier": math.nan},
        {"noise_multiplier": math.inf},
    ],
)
def test_a_config_without_a_guarantee_is_refused(changes: dict[str, Any]):
    values = {"num_clients_per_round": 4, "l2_clip_norm": 1.0, "noise_multiplier": 1.0}
    with pytest.raises(PrivacyError, match=next(iter(changes))):
        ClientLevelConfig(**(values | changes))


def test_the_event_is_what_a_client_spends():
    config = ClientLevelConfig(num_clients_per_round=4, l2_clip_norm=1.0, noise_multiplier=3.0)
    assert config.event(9) == ClientUpdateEvent(noise_multiplier=3.0, num_rounds=9)
    # Nine rounds at 3 are one at 1: 4.3772 by the closed form of Balle and Wang (2018).
    assert epsilon([config.event(9)], 1e-5) == pytest.approx(4.3772, abs=1e-4)
