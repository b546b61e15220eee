"""`fedpeft bench simulate`: a whole federated run against the stacks that others would use.

Every arm is a process of its own on the same job, and its time is the wall clock from start to
exit: interpreter, imports, loading, rounds, the final evaluation, and for fedpeft also its
calibration, its journal, the export and the check of the reloaded adapter. The floor is the
exception: of it only the pure forward and backward counts.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from fedpeft.bench.interleave import CONFIDENCE, paired_ratio, reachable_confidence
from fedpeft.bench.schema import ArmReport, CaseReport, CheckReport, Quantity, RatioReport
from fedpeft.bench.stack_arms import OURS, Arms, Outcome, run_arm
from fedpeft.bench.stack_job import PreparedJob, StackSettings, prepare_job
from fedpeft.types import derive_seed

# Time of fedpeft over time of the arm, at most.
TARGETS = {"tutorial": 1 / 5, "careful": 1 / 2, "nonprivate": 1.3}
# Paths of a machine, and not what fixes the work.
_PATHS = {"train", "test", "text_column", "label_column"}


def run_stacks(
    settings: StackSettings,
    arms: Arms,
    *,
    num_blocks: int,
    output: Path,
    advanced: Callable[[str, float], object] = lambda name, seconds: None,
) -> CaseReport:
    """Runs all arms in interleaved blocks; their logs and results stay in `output`/runs.

    Args:
        settings: The run.
        arms: Who does it.
        num_blocks: Each runs every arm once, those of `arms.once` in the first block only.
        output: Folder.
        advanced: Called with an arm's name and its seconds.

    Raises:
        InputError: If an arm, the data or the model cannot be used.
        VerificationError: If an arm fails or its RESULT.json is none.
    """
    arms.check()
    runs = output / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    rng = random.Random(derive_seed(settings.seed, "order of arms"))  # noqa: S311  no secret
    outcomes: dict[str, list[Outcome]] = {name: [] for name in arms.names}
    with TemporaryDirectory(prefix="fedpeft-bench-") as scratch:
        prepared = prepare_job(settings, Path(scratch))
        for block in range(num_blocks):
            names = [name for name in arms.names if block == 0 or name not in arms.once]
            rng.shuffle(names)
            for name in names:
                outcome = run_arm(name, arms, Path(scratch), runs / f"{name}-{block + 1}")
                outcomes[name].append(outcome)
                advanced(name, outcome.seconds)
    return _case(settings, arms, prepared, outcomes)


def _case(
    settings: StackSettings,
    arms: Arms,
    prepared: PreparedJob,
    outcomes: Mapping[str, Sequence[Outcome]],
) -> CaseReport:
    return CaseReport(
        name=f"{len(prepared.num_rows)} clients, {prepared.job.num_rounds} rounds",
        settings={
            **settings.model_dump(mode="json", exclude={*_PATHS, "target_modules"}),
            "target_modules": " ".join(settings.target_modules),
        },
        arms=[_arm_report(name, arms, runs) for name, runs in outcomes.items()],
        ratios=[ratio for name in arms.programs for ratio in _ratios(name, arms, outcomes)],
        checks=[
            check
            for name, runs in outcomes.items()
            for number, run in enumerate(runs, 1)
            for check in checks(f"{name}, run {number}", run, prepared)
        ],
        notes=_notes(arms, prepared, outcomes),
    )


def checks(name: str, run: Outcome, prepared: PreparedJob) -> list[CheckReport]:
    """Returns whether an arm did the work: its adapter changed, and it saw the planned rows."""
    job = prepared.job
    changed = math.isfinite(run.delta_norm) and run.delta_norm > 0
    found = [
        CheckReport(
            name=f"{name}: the trained tensors changed",
            error=0.0 if changed else None,
            tolerance=0.5,
            measure="0 where the norm of their change is positive and finite",
        )
    ]
    if run.result is None:
        planned = job.num_rounds * job.local_steps
        missing = [abs(steps - planned) for steps in run.charged_steps]
        complete = len(missing) == len(job.clients)
        found.append(
            CheckReport(
                name=f"{name}: steps charged",
                error=float(sum(missing)) if complete else None,
                tolerance=0.5,
                measure="steps that all clients together are off the plan",
            )
        )
        return found
    expected = prepared.expected_examples
    found.append(
        CheckReport(
            name=f"{name}: rows trained",
            error=abs(run.result.num_examples - expected) / expected,
            tolerance=prepared.examples_tolerance / expected,
            measure="relative to the expected number; five standard deviations of Poisson sampling",
        )
    )
    return found


def _arm_report(name: str, arms: Arms, runs: Sequence[Outcome]) -> ArmReport:
    metrics = {
        "process_seconds": median(run.cost.seconds for run in runs),
        "peak_memory_bytes": median(run.cost.peak_bytes for run in runs),
        "accuracy": median(run.accuracy for run in runs),
        "delta_norm": median(run.delta_norm for run in runs),
    }
    for phase in runs[0].phases:
        metrics[f"seconds_{phase}"] = median(run.phases[phase] for run in runs)
    results = [run.result for run in runs if run.result is not None]
    for count in ("num_examples", "num_tokens", "num_padded_tokens") if results else ():
        metrics[count] = median(getattr(result, count) for result in results)
    return ArmReport(
        name=name,
        description=arms.description(name),
        seconds=[run.seconds for run in runs],
        metrics=metrics,
    )


def _ratios(name: str, arms: Arms, outcomes: Mapping[str, Sequence[Outcome]]) -> list[RatioReport]:
    ours, theirs = outcomes[OURS], outcomes[name]
    num_pairs = min(len(ours), len(theirs))

    def ratio(quantity: Quantity, of: Callable[[Outcome], float]) -> RatioReport:
        return paired_ratio(
            quantity,
            (OURS, name),
            [of(run) for run in ours[:num_pairs]],
            [of(run) for run in theirs[:num_pairs]],
            confidence=reachable_confidence(num_pairs),
            at_most=TARGETS.get(name) if quantity == "seconds" else None,
        )

    found = [ratio("seconds", lambda run: run.seconds)]
    measured = all(run.cost.peak_bytes > 0 for run in [*ours, *theirs])
    if measured and (arms.floor is None or name != arms.floor.stem):
        found.append(ratio("peak_memory", lambda run: float(run.cost.peak_bytes)))
    return found


def _notes(
    arms: Arms, prepared: PreparedJob, outcomes: Mapping[str, Sequence[Outcome]]
) -> list[str]:
    notes = []
    for name in arms.programs:
        result = outcomes[name][0].result
        assert result is not None
        notes.append(f"{name}: " + ", ".join(f"{k} {v}" for k, v in result.stack.items()))
    rounds = {
        name: median(run.phases["rounds"] for run in runs)
        for name, runs in outcomes.items()
        if "rounds" in runs[0].phases
    }
    notes.append(
        "seconds of the rounds alone, without start-up, evaluation and export: "
        + ", ".join(f"{name} {seconds:.1f}" for name, seconds in rounds.items())
    )
    num_blocks = len(outcomes[OURS])
    confidence = reachable_confidence(num_blocks)
    if confidence < CONFIDENCE:
        notes.append(f"intervals are the range over blocks: {confidence:.0%} for {num_blocks}")
    for name, runs in outcomes.items():
        accuracy = median(run.accuracy for run in runs)
        if accuracy <= prepared.majority_accuracy:
            notes.append(
                f"{name}: accuracy {accuracy:.4f} is not above that of the most frequent label, "
                f"{prepared.majority_accuracy:.4f}"
            )
    return notes
