"""`fedpeft bench dp-step`: what privacy costs a training step, beside the same step by Opacus.

For each case the arms are built on the same weights, adapter, head and token ids; their gradients
are checked; they run interleaved; then each arm's memory is measured in a process of its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch

from fedpeft.bench.cases import (
    Case,
    build_base,
    build_model,
    random_batch,
    trained_tensors,
)
from fedpeft.bench.environment import synchronizer
from fedpeft.bench.grad_check import (
    GRAD_TOLERANCES,
    SUM_TOLERANCES,
    check_grads,
    check_noise,
    check_sum,
    clipped_sum,
    oracle_grads,
    row_norms,
)
from fedpeft.bench.interleave import Arm, Timings, paired_ratio, run_interleaved
from fedpeft.bench.memory import measure_memory
from fedpeft.bench.opacus_arms import OPACUS_GHOST, OPACUS_HOOKS, OpacusArm, PeftModule
from fedpeft.bench.schema import ArmReport, CaseReport, CheckReport, MemoryReport, RatioReport
from fedpeft.bench.step_arms import (
    FEDPEFT,
    NOISE_MULTIPLIER,
    NON_PRIVATE,
    noisy_gradient,
    non_private_step,
    private_step,
)
from fedpeft.dp.clipping import clip_and_sum
from fedpeft.dp.grad_sample import per_example_grads
from fedpeft.dp.grid import Grid
from fedpeft.errors import ModelError
from fedpeft.federated.adapted_model import AdaptedModel
from fedpeft.models.dataset import Batch

MAX_TIME_RATIO, MAX_MEMORY_RATIO = 1.05, 1.25
OPACUS = (OPACUS_HOOKS, OPACUS_GHOST)
# Of the median row's norm: so much is clipped that a sum of unclipped rows is far away.
_CLIPPED_TO = 0.5
_OF_ORACLE = "clipped sum = rows of autograd, clipped and summed in float64"
_DESCRIPTIONS = {
    NON_PRIVATE: "forward, backward of the mean loss, SGD",
    FEDPEFT: "forward, per-example gradients, flat clip, exact sum, AES-CTR noise, SGD",
    OPACUS_HOOKS: "peft's LoRA under GradSampleModule and DPOptimizer, secure_mode off",
    OPACUS_GHOST: "peft's LoRA under ghost clipping (two backward passes), secure_mode off",
}


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """How the cases are run.

    Attributes:
        num_blocks: Measured blocks.
        num_warmup_blocks: Blocks before them.
        seed: Of weights, token ids, initial values and the order of arms.
        device: Where to.
        with_opacus: Whether the arms of Opacus take part.
        with_memory: Whether each arm's memory is measured.
    """

    num_blocks: int
    num_warmup_blocks: int
    seed: int
    device: torch.device
    with_opacus: bool = True
    with_memory: bool = True

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of the arms, the reference first."""
        return (NON_PRIVATE, FEDPEFT, *(OPACUS if self.with_opacus else ()))


def run_case(
    case: Case, settings: StepSettings, advanced: Callable[[], object] = lambda: None
) -> CaseReport:
    """Runs one case; the arms are measured also if a check fails, and the report says which.

    Raises:
        InputError: If the model cannot be loaded or adapted.
    """
    model = build_model(case, settings.seed, settings.device)
    batch = random_batch(case, model.task_model.base, settings.seed, settings.device)
    l2_clip_norm, checks, opacus = _checked(case, settings, model, batch)
    arms: dict[str, Arm] = {
        NON_PRIVATE: non_private_step(model, batch),
        FEDPEFT: private_step(model, batch, l2_clip_norm),
        **{name: arm.step for name, arm in opacus.items()},
    }
    timings = run_interleaved(
        arms,
        num_blocks=settings.num_blocks,
        num_warmup_blocks=settings.num_warmup_blocks,
        seed=settings.seed,
        synchronize=synchronizer(settings.device),
        advanced=advanced,
    )
    num_trained = sum(tensor.numel() for tensor in trained_tensors(model).values())
    del arms, opacus, model, batch
    memory = _memory(case, settings, l2_clip_norm, advanced) if settings.with_memory else {}
    return CaseReport(
        name=case.name,
        settings={
            "model": case.model or f"random weights, {case.shape}",
            "task": case.task,
            "num_rows": case.num_rows,
            "num_tokens": case.num_tokens,
            "rank": case.rank,
            "target_modules": " ".join(case.target_modules),
            "dtype": case.dtype,
            "num_trained": num_trained,
            "l2_clip_norm": l2_clip_norm,
            "noise_multiplier": NOISE_MULTIPLIER,
        },
        arms=[
            ArmReport(
                name=name,
                description=_DESCRIPTIONS[name],
                seconds=timings.seconds[name],
                cpu_seconds=timings.cpu_seconds[name],
                memory=memory.get(name),
                metrics={
                    "tokens_per_second": case.num_batch_tokens / median(timings.seconds[name])
                },
            )
            for name in settings.arms
        ],
        ratios=_ratios(settings.arms, timings, memory),
        checks=checks,
        notes=[
            f"{name}: its memory could not be measured"
            for name in settings.arms
            if settings.with_memory and memory.get(name) is None
        ],
    )


def build_arm(case: Case, name: str, seed: int, device: torch.device, l2_clip_norm: float) -> Arm:
    """Builds one arm alone, for the process that measures its memory."""
    model = build_model(case, seed, device)
    batch = random_batch(case, model.task_model.base, seed, device)
    if name == NON_PRIVATE:
        return non_private_step(model, batch)
    if name == FEDPEFT:
        return private_step(model, batch, l2_clip_norm)
    return _opacus_arm(case, name, seed, model, batch, l2_clip_norm).step


def _opacus_arm(
    case: Case, name: str, seed: int, model: AdaptedModel, batch: Batch, l2_clip_norm: float
) -> OpacusArm:
    base = build_base(case, seed, model.device)
    module = PeftModule(base, case, model.adapted_modules, model.tensors())
    return OpacusArm(module, batch, l2_clip_norm, name)


def _checked(
    case: Case, settings: StepSettings, model: AdaptedModel, batch: Batch
) -> tuple[float, list[CheckReport], dict[str, OpacusArm]]:
    """The clip norm, the checks, and the arms of Opacus that were checked."""
    of_grads, of_sums = GRAD_TOLERANCES[case.dtype], SUM_TOLERANCES[case.dtype]
    num_rows = batch.num_rows
    oracle = oracle_grads(model, batch)
    l2_clip_norm = _CLIPPED_TO * float(row_norms(oracle).median())
    if not 0 < l2_clip_norm < float("inf"):
        raise ModelError(f"{case.name}: the gradients of this model are {l2_clip_norm}")
    dimension = sum(grad[0].numel() for grad in oracle.values())
    grid = Grid.for_clip_norm(l2_clip_norm, dimension)
    total = clipped_sum(oracle, l2_clip_norm)

    task_model = model.task_model
    grads = per_example_grads(task_model, num_rows, lambda: task_model.losses(batch))
    ours = {n: units * grid.step for n, units in clip_and_sum(grads, grid).units.items()}
    released = noisy_gradient(model, batch, l2_clip_norm)().mean
    scaled = {name: mean.double() * num_rows for name, mean in released.items()}
    checks = [
        check_grads(FEDPEFT, grads, oracle, of_grads),
        check_sum(f"{FEDPEFT}: {_OF_ORACLE}", ours, total, grid, num_rows, of_sums),
        check_noise(FEDPEFT, scaled, ours, NOISE_MULTIPLIER * grid.sensitivity),
    ]
    del grads
    opacus = {
        name: _opacus_arm(case, name, settings.seed, model, batch, l2_clip_norm)
        for name in settings.arms
        if name in OPACUS
    }
    for name, arm in opacus.items():
        if name == OPACUS_HOOKS:
            checks.append(check_grads(name, arm.per_example_grads(), oracle, of_grads))
        theirs = arm.clipped_sum()
        checks.append(check_sum(f"{name}: {_OF_ORACLE}", theirs, total, grid, num_rows, of_sums))
        checks.append(
            check_sum(
                f"{name}: clipped sum = that of {FEDPEFT}", theirs, ours, grid, num_rows, of_sums
            )
        )
    return l2_clip_norm, checks, opacus


def _memory(
    case: Case, settings: StepSettings, l2_clip_norm: float, advanced: Callable[[], object]
) -> dict[str, MemoryReport]:
    found = {}
    for name in settings.arms:
        build = partial(build_arm, case, name, settings.seed, settings.device, l2_clip_norm)
        measured = measure_memory(build, settings.device, torch.get_num_threads())
        if measured is not None:
            found[name] = measured
        advanced()
    return found


def _ratios(
    arms: Sequence[str], timings: Timings, memory: dict[str, MemoryReport]
) -> list[RatioReport]:
    """Our arm over every other one, and each arm of Opacus over the step without privacy."""
    pairs = [(FEDPEFT, NON_PRIVATE)]
    pairs += [(name, NON_PRIVATE) for name in arms if name in OPACUS]
    pairs += [(FEDPEFT, name) for name in arms if name in OPACUS]
    ratios = []
    for pair in pairs:
        above, below = pair
        is_ours = pair == (FEDPEFT, NON_PRIVATE)
        ratios += [
            paired_ratio(
                "seconds",
                pair,
                timings.seconds[above],
                timings.seconds[below],
                at_most=MAX_TIME_RATIO if is_ours else None,
            ),
            paired_ratio(
                "cpu_seconds", pair, timings.cpu_seconds[above], timings.cpu_seconds[below]
            ),
        ]
        if above in memory and below in memory:
            ratios += [
                paired_ratio(
                    "peak_memory",
                    pair,
                    [memory[above].peak_bytes],
                    [memory[below].peak_bytes],
                    at_most=MAX_MEMORY_RATIO if is_ours else None,
                ),
                paired_ratio(
                    "step_memory", pair, [memory[above].step_bytes], [memory[below].step_bytes]
                ),
            ]
    return ratios
