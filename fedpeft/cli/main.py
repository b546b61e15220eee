"""The `fedpeft` command: what it is made of. Heavy libraries are imported where they are used."""

import sys
from typing import Annotated

import typer

from fedpeft import __version__
from fedpeft.cli import (
    adapter,
    audit,
    bench,
    budget,
    client,
    config,
    data,
    doctor,
    model,
    pki,
    removal,
    report,
    serve,
    server,
    simulate,
)
from fedpeft.cli import run as runs
from fedpeft.errors import FedpeftError

app = typer.Typer(
    name="fedpeft",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Fine-tune one language-model adapter together, under a privacy budget that is enforced.",
    epilog="Exit codes: 0 done, 1 a defect of ours, 2 input that cannot be used (nothing was "
    "changed), 3 a finished result failed its check, 4 a server refused, 5 a server or database "
    "cannot be reached, 130 stopped, can be resumed.",
)
app.command("simulate")(simulate.simulate)
app.command("audit")(audit.audit)
app.command("doctor")(doctor.doctor)
app.command("serve")(serve.serve)
app.add_typer(adapter.app, name="adapter")
app.add_typer(bench.app, name="bench")
app.add_typer(budget.app, name="budget")
app.add_typer(client.app, name="client")
app.add_typer(config.app, name="config")
app.add_typer(data.app, name="data")
app.add_typer(model.app, name="model")
app.add_typer(pki.app, name="pki")
app.add_typer(removal.app, name="removal")
app.add_typer(report.app, name="report")
app.add_typer(runs.app, name="run")
app.add_typer(server.app, name="server")


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"fedpeft {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_show_version, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """What stands before a command."""


def run() -> None:
    """Runs the command; errors that we raise on purpose become one sentence and an exit code."""
    try:
        app()
    except FedpeftError as error:
        typer.secho(f"error: {error}", err=True, fg=typer.colors.RED)
        sys.exit(error.exit_code)
