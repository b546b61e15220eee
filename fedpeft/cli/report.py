"""`fedpeft report`: the schema of report.json, and a report shown again."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Read the reports of finished runs.")


@app.command()
def schema() -> None:
    """Print the JSON Schema of report.json."""
    from fedpeft.report.schema_doc import schema_json

    typer.echo(schema_json(), nl=False)


@app.command()
def show(
    path: Annotated[Path, typer.Argument(help="Folder of a finished run, or its report.json.")],
) -> None:
    """Show the summary of a finished run."""
    from rich.console import Console

    from fedpeft.cli.progress import summary
    from fedpeft.report.write import read_report

    console = Console()
    console.print(summary(read_report(path), ascii_only=console.options.ascii_only))
