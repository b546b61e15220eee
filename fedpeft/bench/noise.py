"""`fedpeft bench noise`: what secret Gaussian noise costs, beside generators that are no secret.

AES in counter mode is slower than a statistical generator; what matters is how much of a training
step that is. So besides draws of fixed sizes there is a case whose arms are a whole private step
and the noise of that step.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedpeft.bench.cases import Case, build_model, random_batch, trained_tensors
from fedpeft.bench.dp_step import StepSettings
from fedpeft.bench.environment import synchronizer
from fedpeft.bench.interleave import Arm, Timings, paired_ratio, run_interleaved
from fedpeft.bench.opacus_arms import is_installed
from fedpeft.bench.schema import ArmReport, CaseReport, CheckReport
from fedpeft.bench.step_arms import FEDPEFT, NOISE_MULTIPLIER, private_step
from fedpeft.dp.clipping import empty_sum
from fedpeft.dp.grid import Grid
from fedpeft.dp.noise import add_gaussian_noise
from fedpeft.dp.randomness import Keystream

DEFAULT_DIMENSIONS = (10_000, 100_000, 1_000_000, 10_000_000)
RELEASE, NUMPY, TORCH = "fedpeft", "numpy pcg64", "torch randn"
OPACUS, OPACUS_SECURE = "opacus", "opacus secure"
STEP_NOISE = "noise of the step"
_DESCRIPTIONS = {
    RELEASE: "AES-256-CTR, Box-Muller in float64, rounded to the grid and added",
    NUMPY: "Generator(PCG64).standard_normal, float64",
    TORCH: "torch.randn, float32",
    OPACUS: "Opacus, secure_mode off: torch.normal, float32",
    OPACUS_SECURE: "Opacus, secure_mode on: a sum of four from torchcsprng, float32",
    STEP_NOISE: "drawing, rounding and adding the noise of the step",
    f"{FEDPEFT} step": "the private step of `bench dp-step`, noise included",
}
_CLIP_NORM = 1.0
_NUM_SIGMAS = 6.0


def arm_names() -> list[str]:
    """Returns the arms that this installation has."""
    names = [RELEASE, NUMPY, TORCH]
    if is_installed():
        names.append(OPACUS)
        if find_spec("torchcsprng") is not None:
            names.append(OPACUS_SECURE)
    return names


def extra_packages() -> list[str]:
    """Returns the distributions that the arms need beyond our own dependencies."""
    return ["opacus"] if is_installed() else []


def run_draws(
    dimension: int, settings: StepSettings, advanced: Callable[[], object] = lambda: None
) -> CaseReport:
    """Runs one draw of `dimension` coordinates by every generator; each has stddev 1."""
    draws = _draws(dimension, settings.seed, settings.device)
    checks = [_check_moments(name, draw()) for name, draw in draws.items()]
    timings = run_interleaved(
        draws,
        num_blocks=settings.num_blocks,
        num_warmup_blocks=settings.num_warmup_blocks,
        seed=settings.seed,
        synchronize=synchronizer(settings.device),
        advanced=advanced,
    )
    return CaseReport(
        name=f"{dimension:,} coordinates",
        settings={"dimension": dimension},
        arms=_arm_reports(timings),
        ratios=[
            paired_ratio(
                "seconds", (RELEASE, name), timings.seconds[RELEASE], timings.seconds[name]
            )
            for name in draws
            if name != RELEASE
        ],
        checks=checks,
    )


def run_share(
    case: Case, settings: StepSettings, advanced: Callable[[], object] = lambda: None
) -> CaseReport:
    """Runs the private step of a case, and the noise of that step alone.

    Raises:
        InputError: If the model cannot be loaded or adapted.
    """
    model = build_model(case, settings.seed, settings.device)
    batch = random_batch(case, model.task_model.base, settings.seed, settings.device)
    shapes = {name: tensor.shape for name, tensor in trained_tensors(model).items()}
    dimension = sum(shape.numel() for shape in shapes.values())
    total = empty_sum(shapes, Grid.for_clip_norm(_CLIP_NORM, dimension), settings.device)
    keystream = Keystream.from_system()
    whole = f"{FEDPEFT} step"
    arms: dict[str, Arm] = {
        whole: private_step(model, batch, _CLIP_NORM),
        STEP_NOISE: lambda: add_gaussian_noise(total, NOISE_MULTIPLIER, keystream),
    }
    timings = run_interleaved(
        arms,
        num_blocks=settings.num_blocks,
        num_warmup_blocks=settings.num_warmup_blocks,
        seed=settings.seed,
        synchronize=synchronizer(settings.device),
        advanced=advanced,
    )
    pair = (STEP_NOISE, whole)
    return CaseReport(
        name=f"step of {case.name}",
        settings={"dimension": dimension},
        arms=_arm_reports(timings),
        ratios=[paired_ratio("seconds", pair, timings.seconds[STEP_NOISE], timings.seconds[whole])],
        checks=[],
    )


def _draws(dimension: int, seed: int, device: torch.device) -> dict[str, Callable[[], Tensor]]:
    # The noise of a sum has stddev multiplier * sensitivity; here that is 1.
    grid = Grid.for_clip_norm(_CLIP_NORM, dimension)
    zero = empty_sum({"sum": torch.Size([dimension])}, grid, device)
    keystream, pcg64 = Keystream.from_system(), np.random.Generator(np.random.PCG64(seed))
    reference = torch.zeros(dimension, device=device)
    draws: dict[str, Callable[[], Tensor]] = {
        RELEASE: lambda: add_gaussian_noise(zero, 1 / grid.sensitivity, keystream)["sum"],
        NUMPY: lambda: torch.from_numpy(pcg64.standard_normal(dimension)).to(device),
        TORCH: lambda: torch.randn(dimension, device=device),
    }
    available = arm_names()
    if OPACUS in available:
        from opacus.optimizers.optimizer import _generate_noise

        draws[OPACUS] = lambda: _generate_noise(std=1.0, reference=reference)
        if OPACUS_SECURE in available:
            import torchcsprng

            generator: Any = torchcsprng.create_random_device_generator("/dev/urandom")
            draws[OPACUS_SECURE] = lambda: _generate_noise(
                std=1.0, reference=reference, generator=generator, secure_mode=True
            )
    return draws


def _check_moments(name: str, noise: Tensor) -> CheckReport:
    """The noise has mean 0 and mean square 1, to six standard errors: the arms do the same work."""
    values = noise.double()
    root = len(values) ** 0.5
    mean = float(values.mean().abs()) * root
    square = abs(float(values.square().mean()) - 1) * root / 2**0.5
    worst = max(mean, square)
    return CheckReport(
        name=f"{name}: mean 0, stddev 1",
        error=worst if np.isfinite(worst) else None,
        tolerance=_NUM_SIGMAS,
        measure="standard errors",
    )


def _arm_reports(timings: Timings) -> list[ArmReport]:
    return [
        ArmReport(
            name=name,
            description=_DESCRIPTIONS[name],
            seconds=seconds,
            cpu_seconds=timings.cpu_seconds[name],
        )
        for name, seconds in timings.seconds.items()
    ]
