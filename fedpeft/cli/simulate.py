"""`fedpeft simulate`: the whole federated run on one machine."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from fedpeft.config import load_config
from fedpeft.errors import ConfigError

_STOPPED = 130


def simulate(
    config: Annotated[
        Path | None,
        typer.Argument(help="The run as TOML; `fedpeft config schema` documents every key."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="New or empty folder for report and adapter."),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", help="Folder of a stopped run to go on with.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a key; repeatable."),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="CPU threads. Default: all; with --workers, of each: 1."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Ray actors that share the clients; same results."),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="ADDRESS",
            help="A running Ray cluster for the workers; as many as it has room for, if --workers "
            "does not say how many.",
        ),
    ] = None,
    insecure_seeded_noise: Annotated[
        bool,
        typer.Option(
            "--insecure-seeded-noise",
            help="Draw the noise from the seed: the run repeats bit for bit and protects nobody.",
        ),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print report.json instead of progress and summary.")
    ] = False,
) -> None:
    """Run a whole federation on this machine: train, evaluate, export, verify, report.

    Ctrl-C stops after the client that is training now; --resume DIR goes on from there.
    """
    if resume is not None:
        if config or output or overrides or insecure_seeded_noise:
            raise ConfigError(
                "--resume goes on with the run as it was configured; leave out CONFIG, --output, "
                "--set and --insecure-seeded-noise"
            )
        folder = resume
    elif config is None:
        raise ConfigError("name a configuration file, or --resume the folder of a stopped run")
    else:
        seeded = ["privacy.insecure_seeded_noise=true"] if insecure_seeded_noise else []
        run_config = load_config(config, [*(overrides or []), *seeded])
        folder = output or Path(run_config.output.directory or f"runs/{config.stem}")

    from rich.console import Console

    from fedpeft import simulate as runs
    from fedpeft.cli.progress import SilentProgress, SimulationProgress, summary
    from fedpeft.federated.simulation import Stopped
    from fedpeft.workers import WorkersConfig

    actors = None
    if workers is not None or ray is not None:
        actors = WorkersConfig(num_workers=workers, num_threads=threads or 1, address=ray)
    if threads is not None and actors is None:
        import torch

        torch.set_num_threads(threads)
    progress = SilentProgress() if quiet or as_json else SimulationProgress()
    try:
        with _stop_on_interrupt() as stop_requested, progress as observer:
            if resume is not None:
                report = runs.resume(
                    folder, observer, workers=actors, stop_requested=stop_requested
                )
            else:
                report = runs.simulate(
                    run_config, folder, observer, workers=actors, stop_requested=stop_requested
                )
    except (Stopped, KeyboardInterrupt):
        typer.echo(f"stopped; go on with: fedpeft simulate --resume {folder}", err=True)
        raise typer.Exit(_STOPPED) from None
    if as_json:
        from fedpeft.report.write import finite, to_json

        typer.echo(to_json(finite(report)), nl=False)
        return
    console = Console()
    console.print(summary(report, ascii_only=console.options.ascii_only))
    console.print(f"report   {folder / 'report.html'}", style="dim", highlight=False)
    console.print(f"adapter  {folder / runs.ADAPTER_FOLDER}", style="dim", highlight=False)


@contextmanager
def _stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C asks the run to stop after this client, the second one stops it at once.

    A client that is stopped in the middle has paid for its round: its charge stays.
    """
    asked = False

    def handle(signum: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        typer.echo("\nstopping after this client; press Ctrl-C again to stop at once", err=True)

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)
