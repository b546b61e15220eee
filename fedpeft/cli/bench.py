"""`fedpeft bench`: what privacy costs, and what the alternatives cost on the same machine."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fedpeft.cli import bench_round, bench_simulate
from fedpeft.errors import ConfigError, VerificationError

if TYPE_CHECKING:
    import torch

    from fedpeft.bench.dp_step import StepSettings
    from fedpeft.bench.schema import BenchReport, CaseReport

_STOPPED = 130
_MAX_DIMENSION = 1_000_000_000
Advanced = Callable[[], object]

app = typer.Typer(no_args_is_help=True, help="Measure steps and noise against the alternatives.")
app.command("round")(bench_round.bench_round)
app.command("simulate")(bench_simulate.simulate)

Model = Annotated[
    str | None, typer.Option("--model", help="Folder, 'package:...' or hub id of the base model.")
]
Blocks = Annotated[int, typer.Option(min=1, help="Measured blocks; each runs every arm once.")]
Warmup = Annotated[int, typer.Option(min=0, help="Blocks before them, not measured.")]
Seed = Annotated[int, typer.Option(min=0, help="Order of the arms, inputs and initial values.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: all cores.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="New or empty folder for bench.json and bench.svg."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print bench.json instead of the tables.")]


@app.command("dp-step")
def dp_step(
    cases: Annotated[
        list[str] | None,
        typer.Argument(help="Default: minilm-16x32 and minilm-32x64."),
    ] = None,
    model: Model = None,
    task: Annotated[
        str | None, typer.Option(help="With --model alone: classification or causal-lm.")
    ] = None,
    rows: Annotated[int | None, typer.Option(min=2, help="Rows of the batch.")] = None,
    tokens: Annotated[int | None, typer.Option(min=2, help="Tokens of each row.")] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="LoRA rank.")] = None,
    targets: Annotated[
        list[str] | None, typer.Option("--targets", help="Module pattern; repeatable.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Of the frozen weights: float32 or bfloat16.")
    ] = None,
    opacus: Annotated[bool, typer.Option(help="Run the arms of Opacus.")] = True,
    memory: Annotated[bool, typer.Option(help="Measure memory, one process an arm.")] = True,
    blocks: Blocks = 20,
    warmup: Warmup = 2,
    seed: Seed = 0,
    threads: Threads = None,
    device: Device = "auto",
    output: Output = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Time and memory of a private step over the same step without privacy, beside Opacus.

    CASES, named by rows x tokens: minilm-16x32 and minilm-32x64 (the default), smollm2-8x64 (needs
    --model), and with random weights roberta-large-32x128, roberta-large-64x256, llama-1b-8x256 and
    llama-1b-16x512, for GPUs. Or one of your own: --model with --targets.

    All arms train the same LoRA on the same token ids, and their gradients are compared with
    autograd, row by row. Exit code 3: a comparison failed.
    """
    from fedpeft.bench.cases import chosen_cases
    from fedpeft.bench.dp_step import StepSettings, run_case
    from fedpeft.bench.opacus_arms import is_installed

    chosen = chosen_cases(
        cases or [],
        {
            "model": model,
            "task": task,
            "num_rows": rows,
            "num_tokens": tokens,
            "rank": rank,
            "target_modules": tuple(targets) if targets else None,
            "dtype": dtype,
        },
    )
    if opacus and not is_installed():
        raise ConfigError("Opacus is not installed: pip install opacus, or give --no-opacus")
    settings = StepSettings(
        num_blocks=blocks,
        num_warmup_blocks=warmup,
        seed=seed,
        device=_prepared(device, threads, output),
        with_opacus=opacus,
        with_memory=memory,
    )
    num_arms = len(settings.arms)
    num_runs = num_arms * (blocks + warmup) + (num_arms if memory else 0)
    found: list[CaseReport] = []
    with _progress(quiet or as_json) as started:
        for case in chosen:
            found.append(run_case(case, settings, started(case.name, num_runs)))
    _finish(_report("dp-step", found, settings, ["opacus"] if opacus else []), output, as_json)


@app.command()
def noise(
    dimensions: Annotated[
        list[int] | None,
        typer.Argument(help="Numbers to draw. Default: 1e4, 1e5, 1e6 and 1e7.", min=2),
    ] = None,
    case: Annotated[
        str | None,
        typer.Option(help="Case of dp-step whose step the noise is a share of; '' for none."),
    ] = "minilm-16x32",
    model: Model = None,
    blocks: Blocks = 20,
    warmup: Warmup = 2,
    seed: Seed = 0,
    threads: Threads = None,
    device: Device = "auto",
    output: Output = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Time of drawing secret Gaussian noise, over generators that are no secret, and in a step."""
    from fedpeft.bench import noise as draws
    from fedpeft.bench.cases import chosen_cases
    from fedpeft.bench.dp_step import StepSettings

    sizes = dimensions or list(draws.DEFAULT_DIMENSIONS)
    if max(sizes) > _MAX_DIMENSION:
        raise ConfigError(f"at most {_MAX_DIMENSION:,} numbers are drawn at once, got {max(sizes)}")
    if len(set(sizes)) < len(sizes):
        raise ConfigError("name each number of draws once")
    steps = chosen_cases([case], {"model": model}) if case else []
    settings = StepSettings(
        num_blocks=blocks,
        num_warmup_blocks=warmup,
        seed=seed,
        device=_prepared(device, threads, output),
    )
    runs = blocks + warmup
    with _progress(quiet or as_json) as started:
        found = [
            draws.run_draws(size, settings, started(f"{size:,}", len(draws.arm_names()) * runs))
            for size in sizes
        ]
        found += [draws.run_share(step, settings, started(step.name, 2 * runs)) for step in steps]
    _finish(_report("noise", found, settings, draws.extra_packages()), output, as_json)


def _prepared(device: str, threads: int | None, output: Path | None) -> "torch.device":
    """Everything that can be refused is refused before the first model is loaded."""
    import torch

    from fedpeft.bench.environment import device_named
    from fedpeft.federated.run_folder import check_unused

    if output is not None:
        check_unused(output)
    if threads is not None:
        torch.set_num_threads(threads)
    return device_named(device)


def _report(
    benchmark: Literal["dp-step", "noise"],
    cases: "list[CaseReport]",
    settings: "StepSettings",
    packages: list[str],
) -> "BenchReport":
    from fedpeft.bench.environment import new_report

    return new_report(
        benchmark,
        cases,
        seed=settings.seed,
        num_blocks=settings.num_blocks,
        num_warmup_blocks=settings.num_warmup_blocks,
        device=settings.device,
        packages=packages,
    )


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[str, int], Advanced]]:
    """A bar a case on standard error; Ctrl-C ends the whole benchmark."""
    from rich.console import Console
    from rich.progress import Progress, TimeElapsedColumn, TimeRemainingColumn

    columns = (*Progress.get_default_columns()[:-1], TimeElapsedColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=Console(stderr=True), disable=quiet)

    def started(name: str, num_runs: int) -> Advanced:
        bar = progress.add_task(name, total=num_runs)
        return lambda: progress.advance(bar)

    try:
        with progress:
            yield started
    except KeyboardInterrupt:
        typer.echo("stopped; nothing was written, and a benchmark starts anew", err=True)
        raise typer.Exit(_STOPPED) from None


def _finish(report: "BenchReport", output: Path | None, as_json: bool) -> None:
    """Writes, shows, and says which check failed."""
    from fedpeft.bench.write import JSON_NAME, PLOT_NAME, to_json, write_bench

    if output is not None:
        write_bench(report, output)
    if as_json:
        typer.echo(to_json(report), nl=False)
    else:
        from rich.console import Console

        from fedpeft.cli.bench_view import tables

        console = Console()
        console.print(tables(report))
        if output is not None:
            for name in (JSON_NAME, PLOT_NAME):
                console.print(f"{output / name}", style="dim", highlight=False)
    if report.failed_checks:
        raise VerificationError(
            f"the arms do not compute the same: {'; '.join(report.failed_checks)}. The times are "
            "those of different work and mean nothing; report this with bench.json"
        )
