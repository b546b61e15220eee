"""`fedpeft model`: what a base model is known by between machines."""

import json
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Base models.")


@app.callback()
def _group() -> None:
    pass


@app.command()
def digest(
    name: Annotated[
        str, typer.Argument(help="A folder, package:NAME, or a hub id that is reachable or cached.")
    ],
    revision: Annotated[str | None, typer.Option(help="Of a hub id.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Show the digest of a base model's tensors, for each task that it can be loaded for.

    A run's terms name it, and a client's policy allows it: two machines with the same digest have
    the same model.
    """
    from fedpeft.models.base_digest import base_digests

    found = base_digests(name, revision=revision)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for task, sha in found.items():
        typer.echo(f"{sha}  {task}")
