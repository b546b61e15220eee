"""The arms of `bench simulate`: which there are, and one run of one of them."""

import ast
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from fedpeft.bench.process import ProcessCost, run_program
from fedpeft.bench.stack_job import StackResult
from fedpeft.errors import ConfigError, VerificationError
from fedpeft.report.write import read_report

OURS = "fedpeft"
FLOOR_SECONDS = "forward_backward"
_FEDPEFT = (sys.executable, "-c", "from fedpeft.cli.main import run; run()", "simulate")


@dataclass(frozen=True, kw_only=True)
class Arms:
    """What runs.

    Attributes:
        stacks: Programs that do the whole run.
        floor: Program that does its forward and backward alone; None for none.
        once: Names of the arms that run in the first block only.
        fedpeft_args: More arguments for `fedpeft simulate`.
    """

    stacks: Sequence[Path]
    floor: Path | None = None
    once: frozenset[str] = frozenset()
    fedpeft_args: Sequence[str] = ()

    @property
    def programs(self) -> dict[str, Path]:
        """Name → program of every arm but ours."""
        return {path.stem: path for path in [*self.stacks, *filter(None, [self.floor])]}

    @property
    def names(self) -> list[str]:
        """All arms, ours first."""
        return [OURS, *self.programs]

    def description(self, name: str) -> str:
        """Returns the first line of what the program says about itself."""
        if name == OURS:
            return " ".join(["fedpeft simulate", *self.fedpeft_args])
        text = self.programs[name].read_text(encoding="utf-8")
        return (ast.get_docstring(ast.parse(text)) or name).splitlines()[0]

    def check(self) -> None:
        """Raises ConfigError if a program is missing or arms cannot be told apart."""
        paths = [*self.stacks, *filter(None, [self.floor])]
        for path in paths:
            if not path.is_file():
                raise ConfigError(
                    f"there is no program {path}; benchmarks/stacks has those of fedpeft"
                )
        if len({OURS, *(path.stem for path in paths)}) <= len(paths):
            raise ConfigError(
                "arms are named by their files, so these must differ, and none is 'fedpeft': "
                + ", ".join(path.name for path in paths)
            )
        unknown = self.once - set(self.names)
        if unknown:
            raise ConfigError(
                f"--once names {', '.join(sorted(unknown))}, the arms are {', '.join(self.names)}"
            )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One run of one arm; `result` is None for ours, which counts no rows but charges steps."""

    seconds: float
    cost: ProcessCost
    phases: Mapping[str, float]
    accuracy: float
    delta_norm: float
    result: StackResult | None
    charged_steps: list[int]


def run_arm(name: str, arms: Arms, scratch: Path, record: Path) -> Outcome:
    """Runs an arm once on what `prepare_job` wrote into `scratch`; its log goes beside `record`.

    Raises:
        VerificationError: If it fails or its RESULT.json is none.
    """
    log = record.with_name(f"{record.name}.log")
    if name == OURS:
        folder = scratch / record.name
        threads = json.loads((scratch / "job.json").read_text(encoding="utf-8"))["num_cpus"]
        config = [str(scratch / "run.toml"), "--output", str(folder), "--quiet"]
        command = [*_FEDPEFT, *config, "--threads", str(threads), *arms.fedpeft_args]
        return _ours(run_program(command, log), folder)
    path = record.with_name(f"{record.name}.json")
    path.unlink(missing_ok=True)
    program = [sys.executable, str(arms.programs[name])]
    cost = run_program([*program, str(scratch / "job.json"), str(path)], log)
    result = _read_result(name, path)
    is_floor = arms.floor is not None and name == arms.floor.stem
    if is_floor and FLOOR_SECONDS not in result.seconds:
        raise VerificationError(f"{path}: the floor must report seconds.{FLOOR_SECONDS}")
    return Outcome(
        seconds=result.seconds[FLOOR_SECONDS] if is_floor else cost.seconds,
        cost=cost,
        phases=result.seconds,
        accuracy=result.accuracy,
        delta_norm=result.delta_norm,
        result=result,
        charged_steps=[],
    )


def _read_result(name: str, path: Path) -> StackResult:
    try:
        return StackResult.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise VerificationError(f"{name} ended without an error, but wrote no {path}") from error
    except ValidationError as error:
        raise VerificationError(f"{name} wrote a result that is none: {path}: {error}") from error


def _ours(cost: ProcessCost, folder: Path) -> Outcome:
    report = read_report(folder)
    return Outcome(
        seconds=cost.seconds,
        cost=cost,
        phases={
            "calibration": report.seconds.calibration,
            "rounds": report.seconds.training,
            "evaluation": report.seconds.evaluation,
        },
        accuracy=report.evaluation.metrics["accuracy"],
        delta_norm=report.adapter.delta_norm,
        result=None,
        charged_steps=[client.charged_steps for client in report.clients],
    )
