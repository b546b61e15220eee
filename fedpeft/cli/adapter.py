"""`fedpeft adapter`: the adapter versions of a server."""

from pathlib import Path
from typing import Annotated

import typer

from fedpeft.cli.remote_options import (
    IdentityOption,
    JsonOption,
    ServerOption,
    connect,
    echo_json,
    largest,
    moment,
    print_table,
)

app = typer.Typer(no_args_is_help=True, help="See and download the adapters of a server.")

_AdapterArgument = Annotated[
    str,
    typer.Argument(
        metavar="ADAPTER",
        help="At least 8 leading digits of its digest, or a run's id for its newest version.",
    ),
]


@app.command("list")
def list_(
    run: Annotated[str, typer.Option("--run", metavar="RUN", help="Only of this run.")] = "",
    server: ServerOption = None,
    identity: IdentityOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show adapter versions, oldest first."""
    with connect(server, identity) as connection:
        adapters = connection.list_adapters(run)
    if as_json:
        echo_json(adapters)
        return
    rows = [
        (
            adapter.digest[:12],
            adapter.run_id,
            str(adapter.round),
            (adapter.parent or "")[:12],
            str(len(adapter.participants)),
            largest(adapter.epsilon.values()),
            "yes" if adapter.exported else "",
            moment(adapter.created_at),
        )
        for adapter in adapters
    ]
    titles = ("adapter", "run", "round", "made from", "clients", "ε", "exported", "made (UTC)")
    print_table(titles, rows)


@app.command()
def show(
    adapter: _AdapterArgument,
    server: ServerOption = None,
    identity: IdentityOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one version: what it was made from, and whose updates are in it."""
    from fedpeft.report import text

    with connect(server, identity) as connection:
        found = connection.get_adapter(adapter)
    if as_json:
        echo_json(found)
        return
    metrics = ", ".join(f"{name} {text.metric(name, x)}" for name, x in found.metrics.items())
    rows = [
        ("adapter", found.digest),
        ("run", f"{found.run_id}, round {found.round}"),
        ("made from", found.parent or ""),
        ("base model", f"{found.base_model} ({found.base_digest})"),
        ("held-out", metrics),
        ("made", f"{moment(found.created_at)} UTC"),
        ("exported", "yes" if found.exported else "no"),
    ]
    for title, value in rows:
        if value:
            typer.echo(f"{title:10s} {text.printable(value)}")
    if found.participants:
        typer.echo()
        spent = found.epsilon
        rows = [
            (client, text.epsilon(spent[client]) if client in spent else "")
            for client in found.participants
        ]
        print_table(("client", "ε after the round"), rows)


@app.command()
def download(
    adapter: _AdapterArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="New or empty folder.")],
    server: ServerOption = None,
    identity: IdentityOption = None,
) -> None:
    """Save a version in PEFT format; every file is checked against its sha256."""
    with connect(server, identity) as connection:
        names = connection.download_adapter(adapter, output)
    for name in names:
        typer.echo(str(output / name))
