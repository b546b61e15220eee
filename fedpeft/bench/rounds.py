"""`fedpeft bench round`: time and bytes of a federated round without training, against Flower's.

Each arm is a program that starts a federation of real processes over TLS on this machine. Both stay
up while they take turns: a block is one round of each, in a random order, while the other waits.
Start-up does not count, nor does the first round, in which connections are made and libraries
loaded. Bytes are counted in a run of its own, because counting takes time.
"""

import random
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import ValidationError

from fedpeft.bench.dialogue import Dialogue
from fedpeft.bench.interleave import CONFIDENCE, paired_ratio, reachable_confidence
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
_COUNTED_ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class RoundSettings:
    """What is measured, for each case alike.

    Attributes:
        programs: Folder of the arms.
        num_blocks: Each is one round of every arm; a round before the first does not count.
        deadline_s: For anything that an arm does: start, a round, its end.
        seed: Of the tensors and the order of arms.
    """

    programs: Path
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
class _Taken:
    """One run that was taken through its rounds.

    Attributes:
        seconds: Of each round, the first one too.
        result: What the arm says at its end.
    """

    seconds: list[float]
    result: RoundResult


def run_rounds(
    payload: Payload,
    num_clients: int,
    settings: RoundSettings,
    *,
    output: Path,
    advanced: Callable[[str, float], object] = lambda name, seconds: None,
) -> CaseReport:
    """Measures one case; logs and results of the arms stay in `output`/runs.

    Args:
        payload: What travels.
        num_clients: All take part in every round.
        settings: The rest.
        output: Folder.
        advanced: Called with an arm's name and its seconds after each of its rounds.

    Raises:
        ConfigError: If the programs are not there.
        VerificationError: If one fails, or its RESULT.json is none.
    """
    settings.check()
    name = f"{payload.name}, {num_clients} clients"
    folder = output / "runs" / f"{payload.name}-{num_clients}"
    folder.mkdir(parents=True, exist_ok=True)
    job = RoundJob(
        rank=payload.rank,
        tensors=payload.tensors,
        trained=payload.trained,
        num_clients=num_clients,
        num_rounds=1 + settings.num_blocks,
        count_bytes=False,
        seed=settings.seed,
    )
    timed = _take(job, settings, folder, advanced)
    counting = job.model_copy(update={"num_rounds": _COUNTED_ROUNDS, "count_bytes": True})
    counted = _take(counting, settings, folder / "bytes", advanced)
    return _case(name, payload, job, timed, counted)


def _take(
    job: RoundJob,
    settings: RoundSettings,
    folder: Path,
    advanced: Callable[[str, float], object],
) -> dict[str, _Taken]:
    """Starts both arms and takes them through all rounds, in turn, in a random order."""
    folder.mkdir(exist_ok=True)
    rng = random.Random(derive_seed(settings.seed, "order of arms"))  # noqa: S311  no secret
    seconds: dict[str, list[float]] = {name: [] for name in ARMS}
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(TemporaryDirectory(prefix="fedpeft-bench-")))
        write_text(scratch / "job.json", job.model_dump_json())
        arms = {}
        for name, (program, _) in ARMS.items():
            path = settings.programs / program
            command = [sys.executable, str(path), str(scratch / "job.json"), str(scratch / name)]
            arms[name] = stack.enter_context(Dialogue(command, folder / f"{name}.log"))
        for arm in arms.values():
            arm.hear(settings.deadline_s)
        for _ in range(job.num_rounds):
            for name in rng.sample(list(ARMS), len(ARMS)):
                arms[name].tell("go")
                seconds[name].append(float(arms[name].hear(settings.deadline_s)))
                advanced(name, seconds[name][-1])
        for arm in arms.values():
            arm.finish(settings.deadline_s)
        return {
            name: _Taken(seconds=seconds[name], result=_read_result(name, scratch / name))
            for name in ARMS
        }


def _read_result(name: str, path: Path) -> RoundResult:
    try:
        return RoundResult.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError) as error:
        raise VerificationError(
            f"{name} ended without an error, but left no result: {error}"
        ) from error


def _case(
    case: str,
    payload: Payload,
    job: RoundJob,
    timed: Mapping[str, _Taken],
    counted: Mapping[str, _Taken],
) -> CaseReport:
    # The first round does not count: connections are made and libraries loaded in it.
    seconds = {name: taken.seconds[1:] for name, taken in timed.items()}
    tensor_bytes = (payload.down_bytes + payload.up_bytes) * job.num_clients * _COUNTED_ROUNDS
    wire_bytes = {name: taken.result.wire_bytes or 0 for name, taken in counted.items()}
    confidence = reachable_confidence(len(seconds[OURS]))
    notes = [
        f"{name}: " + ", ".join(f"{key} {value}" for key, value in taken.result.stack.items())
        for name, taken in timed.items()
    ]
    if confidence < CONFIDENCE:
        notes.append(
            f"intervals are the range over blocks: {confidence:.0%} for {len(seconds[OURS])}"
        )
    return CaseReport(
        name=case,
        settings={
            "num_clients": job.num_clients,
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
                    "seconds_first_round": timed[name].seconds[0],
                    "wire_bytes": wire_bytes[name],
                    "tensor_bytes": tensor_bytes,
                },
            )
            for name in ARMS
        ],
        ratios=[
            paired_ratio(
                "seconds",
                (OURS, STOCK),
                seconds[OURS],
                seconds[STOCK],
                confidence=confidence,
                at_most=MOST_SECONDS,
            ),
            *(
                RatioReport(
                    quantity="wire_bytes",
                    numerator=name,
                    denominator=TENSORS,
                    median=wire_bytes[name] / tensor_bytes,
                    num_pairs=1,
                    at_most=MOST_WIRE_BYTES if name == OURS else None,
                )
                for name in ARMS
            ),
        ],
        checks=[
            *(_right(name, taken.result) for name, taken in timed.items()),
            *(_right(f"{name}, counted", taken.result) for name, taken in counted.items()),
            *(_all_travelled(name, wire_bytes[name], tensor_bytes) for name in ARMS),
        ],
        notes=notes,
    )


def _right(name: str, result: RoundResult) -> CheckReport:
    return CheckReport(
        name=f"{name}: the last adapter",
        error=result.error,
        tolerance=_TOLERANCE,
        measure="distance from what the updates must give, relative to its norm",
    )


def _all_travelled(name: str, wire_bytes: int, tensor_bytes: int) -> CheckReport:
    """Whoever moved fewer bytes than there are tensors did not move them."""
    return CheckReport(
        name=f"{name}: all tensors travelled",
        error=max(0.0, 1 - wire_bytes / tensor_bytes),
        tolerance=1e-9,
        measure="share of the tensors' bytes that was not on the wire",
    )
