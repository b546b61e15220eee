"""`fedpeft bench round`: time and bytes of a federated round without training, against Flower's.

Each arm is a program that starts a federation of real processes over TLS on this machine, takes it
through the rounds of one job and says how long each of them took. Start-up does not count, nor does
the first round, in which connections are made and libraries loaded. Bytes are counted in runs of
their own, because counting takes time.
"""

import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from pydantic import ValidationError

from fedpeft.bench.interleave import CONFIDENCE, paired_ratio, reachable_confidence
from fedpeft.bench.process import run_program
from fedpeft.bench.round_job import Payload, RoundJob, RoundResult
from fedpeft.bench.schema import TENSORS, ArmReport, CaseReport, CheckReport, RatioReport
from fedpeft.errors import ConfigError, VerificationError
from fedpeft.files import write_text
from fedpeft.types import derive_seed

OURS, STOCK = "fedpeft", "flower"
ARMS: Mapping[str, tuple[str, str]] = {
    OURS: ("ours.py", "Fleet, engine and clients of fedpeft; every client stays warm"),
    STOCK: ("flower.py", "Flower's SuperLink and SuperNodes; every message starts a process"),
}
"""Arm → its program, and what it is."""
MOST_SECONDS = 1 / 3
"""Target: a round of ours over one of the stock arm, at most."""
MOST_WIRE_BYTES = 1.05
"""Target: bytes of ours on the wire over those of the tensors, at most."""
_TOLERANCE = 1e-4


@dataclass(frozen=True, kw_only=True)
class RoundSettings:
    """What is measured, for each case alike.

    Attributes:
        programs: Folder of the arms.
        num_rounds: Measured rounds of one run; the first one comes on top.
        num_blocks: Each runs every arm once.
        deadline_s: For all rounds of one run.
        seed: Of the tensors and the order of arms.
    """

    programs: Path
    num_rounds: int
    num_blocks: int
    deadline_s: float
    seed: int

    def check(self) -> None:
        """Raises ConfigError if the programs are not there."""
        for program, _ in ARMS.values():
            if not (self.programs / program).is_file():
                raise ConfigError(
                    f"there is no {self.programs / program}; --programs names the folder "
                    "benchmarks/rounds of a checkout of fedpeft"
                )


@dataclass(frozen=True, kw_only=True)
class _Run:
    """One run of one arm."""

    result: RoundResult
    peak_bytes: int

    @property
    def seconds(self) -> float:
        """Of the median round, the first one left out."""
        return median(self.result.seconds[1:])


def run_rounds(
    payload: Payload,
    num_clients: int,
    settings: RoundSettings,
    *,
    output: Path,
    advanced: Callable[[str, float], object] = lambda name, seconds: None,
) -> CaseReport:
    """Runs both arms in interleaved blocks; their logs and results stay in `output`/runs.

    Args:
        payload: What travels.
        num_clients: All take part in every round.
        settings: The rest.
        output: Folder.
        advanced: Called with an arm's name and its seconds a round.

    Raises:
        ConfigError: If the programs are not there.
        VerificationError: If one fails, or its RESULT.json is none.
    """
    settings.check()
    case = f"{payload.name}, {num_clients} clients"
    folder = output / "runs" / f"{payload.name}-{num_clients}"
    folder.mkdir(parents=True, exist_ok=True)
    job = RoundJob(
        rank=payload.rank,
        tensors=payload.tensors,
        trained=payload.trained,
        num_clients=num_clients,
        num_rounds=settings.num_rounds + 1,
        count_bytes=False,
        deadline_s=settings.deadline_s,
        seed=settings.seed,
    )
    rng = random.Random(derive_seed(settings.seed, "order of arms", case))  # noqa: S311  no secret
    timed: dict[str, list[_Run]] = {name: [] for name in ARMS}
    for block in range(settings.num_blocks):
        for name in rng.sample(list(ARMS), len(ARMS)):
            run = _run(name, job, settings, folder / f"{name}-{block + 1}")
            timed[name].append(run)
            advanced(name, run.seconds)
    counting = job.model_copy(update={"count_bytes": True})
    counted = {name: _run(name, counting, settings, folder / f"{name}-bytes") for name in ARMS}
    return _case(case, payload, job, timed, counted)


def _run(name: str, job: RoundJob, settings: RoundSettings, record: Path) -> _Run:
    program = settings.programs / ARMS[name][0]
    with TemporaryDirectory(prefix="fedpeft-bench-") as scratch:
        path = Path(scratch, "job.json")
        write_text(path, job.model_dump_json())
        written = record.with_name(f"{record.name}.json")
        written.unlink(missing_ok=True)
        command = [sys.executable, str(program), str(path), str(written)]
        cost = run_program(command, record.with_name(f"{record.name}.log"))
    try:
        result = RoundResult.model_validate_json(written.read_bytes())
    except (FileNotFoundError, ValidationError) as error:
        raise VerificationError(
            f"{name} ended without an error, but {written} is no result: {error}"
        ) from error
    if len(result.seconds) != job.num_rounds:
        raise VerificationError(
            f"{name} was asked for {job.num_rounds} rounds and reports {len(result.seconds)}"
        )
    return _Run(result=result, peak_bytes=cost.peak_bytes)


def _case(
    case: str,
    payload: Payload,
    job: RoundJob,
    timed: Mapping[str, Sequence[_Run]],
    counted: Mapping[str, _Run],
) -> CaseReport:
    num_pairs = len(timed[OURS])
    tensor_bytes = (payload.down_bytes + payload.up_bytes) * job.num_clients * job.num_rounds
    wire = {name: run.result.wire_bytes or 0 for name, run in counted.items()}
    confidence = reachable_confidence(num_pairs)
    seconds = {name: [run.seconds for run in runs] for name, runs in timed.items()}
    peaks = {name: [float(run.peak_bytes) for run in runs] for name, runs in timed.items()}
    pair = (OURS, STOCK)
    ratios = [
        paired_ratio(
            "seconds",
            pair,
            seconds[OURS],
            seconds[STOCK],
            confidence=confidence,
            at_most=MOST_SECONDS,
        )
    ]
    if all(peak > 0 for values in peaks.values() for peak in values):
        ratios.append(
            paired_ratio("peak_memory", pair, peaks[OURS], peaks[STOCK], confidence=confidence)
        )
    ratios += [
        RatioReport(
            quantity="wire_bytes",
            numerator=name,
            denominator=TENSORS,
            median=wire[name] / tensor_bytes,
            num_pairs=1,
            at_most=MOST_WIRE_BYTES if name == OURS else None,
        )
        for name in ARMS
    ]
    notes = [f"{name}: {_stack(runs[0].result)}" for name, runs in timed.items()]
    if confidence < CONFIDENCE:
        notes.append(f"intervals are the range over blocks: {confidence:.0%} for {num_pairs}")
    return CaseReport(
        name=case,
        settings={
            "num_clients": job.num_clients,
            "num_rounds": job.num_rounds - 1,
            "down_bytes": payload.down_bytes,
            "up_bytes": payload.up_bytes,
            "num_tensors_down": len(job.tensors),
            "num_tensors_up": len(job.trained),
        },
        arms=[
            ArmReport(
                name=name,
                description=ARMS[name][1],
                seconds=seconds[name],
                metrics={
                    "seconds_first_round": median(run.result.seconds[0] for run in runs),
                    "seconds_fastest_round": min(min(run.result.seconds[1:]) for run in runs),
                    "peak_memory_bytes": median(peaks[name]),
                    "wire_bytes": wire[name],
                    "tensor_bytes": tensor_bytes,
                },
            )
            for name, runs in timed.items()
        ],
        ratios=ratios,
        checks=[
            check
            for name, runs in timed.items()
            for number, run in enumerate([*runs, counted[name]], 1)
            for check in _checks(f"{name}, run {number}", run.result)
        ]
        + [_enough_bytes(name, wire[name], tensor_bytes) for name in ARMS],
        notes=notes,
    )


def _checks(name: str, result: RoundResult) -> list[CheckReport]:
    return [
        CheckReport(
            name=f"{name}: the last adapter",
            error=result.error,
            tolerance=_TOLERANCE,
            measure="distance from what the updates must give, relative to its norm",
        )
    ]


def _enough_bytes(name: str, wire_bytes: int, tensor_bytes: int) -> CheckReport:
    """Whoever moved fewer bytes than there are tensors did not move them."""
    return CheckReport(
        name=f"{name}: all tensors travelled",
        error=max(0.0, 1 - wire_bytes / tensor_bytes),
        tolerance=1e-9,
        measure="share of the tensors' bytes that were not on the wire",
    )


def _stack(result: RoundResult) -> str:
    return ", ".join(f"{name} {value}" for name, value in result.stack.items())
