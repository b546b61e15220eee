"""`fedpeft bench round`: rounds without training against Flower as it is."""

from pathlib import Path
from typing import Annotated

import typer

from fedpeft.errors import ConfigError, VerificationError

_STOPPED = 130


def bench_round(
    output: Annotated[Path, typer.Option("--output", "-o", help="New or empty folder.")],
    payloads: Annotated[
        list[str] | None,
        typer.Argument(help="minilm, llama-8b. Default: both."),
    ] = None,
    clients: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Clients; repeatable. Default: 3 and 10."),
    ] = None,
    blocks: Annotated[
        int, typer.Option(min=1, help="Measured blocks; each is one round of both arms.")
    ] = 10,
    programs: Annotated[Path, typer.Option(help="Folder of the two arms.")] = Path(
        "benchmarks/rounds"
    ),
    deadline: Annotated[float, typer.Option(min=1, help="Seconds for a round, or to start.")] = 900,
    seed: Annotated[int, typer.Option(min=0, help="Of tensors and the order of arms.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print bench.json.")] = False,
) -> None:
    """Time and bytes of a round without training: fedpeft against Flower with cold processes.

    Server and clients are processes of this machine that speak TLS over loopback; the LoRA of a
    model goes down, its B comes up. Exit code 3 if an arm did not do the work.
    """
    import torch

    from fedpeft.bench.environment import new_report
    from fedpeft.bench.round_job import PAYLOADS
    from fedpeft.bench.rounds import RoundSettings, run_rounds
    from fedpeft.bench.write import JSON_NAME, PLOT_NAME, to_json, write_bench
    from fedpeft.federated.run_folder import check_unused

    names = list(dict.fromkeys(payloads or PAYLOADS))
    unknown = [name for name in names if name not in PAYLOADS]
    if unknown:
        raise ConfigError(f"there is no payload {unknown[0]!r}; there are {', '.join(PAYLOADS)}")
    check_unused(output)
    settings = RoundSettings(programs=programs, num_blocks=blocks, deadline_s=deadline, seed=seed)
    settings.check()
    try:
        cases = [
            run_rounds(
                PAYLOADS[name],
                num_clients,
                settings,
                output=output,
                advanced=lambda arm, seconds: typer.echo(f"{arm} {seconds:.2f} s", err=True),
            )
            for name in names
            for num_clients in dict.fromkeys(clients or (3, 10))
        ]
    except KeyboardInterrupt:
        typer.echo("stopped; there is no bench.json, and a benchmark starts anew", err=True)
        raise typer.Exit(_STOPPED) from None
    report = new_report(
        "round",
        cases,
        seed=seed,
        num_blocks=blocks,
        num_warmup_blocks=1,
        device=torch.device("cpu"),
        packages=("flwr",),
    )
    write_bench(report, output)
    if as_json:
        typer.echo(to_json(report), nl=False)
    else:
        from rich.console import Console

        from fedpeft.cli.bench_view import tables

        console = Console()
        console.print(tables(report))
        for file in (JSON_NAME, PLOT_NAME):
            console.print(f"{output / file}", style="dim", highlight=False)
    if report.failed_checks:
        raise VerificationError(
            f"not every arm did the work: {'; '.join(report.failed_checks)}. Ratios to such an arm "
            f"mean nothing; the logs are in {output / 'runs'}"
        )
