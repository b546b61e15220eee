"""`fedpeft adapter lineage`: what a version was made from, of whose rows, and what became of it."""

from pathlib import Path
from typing import Annotated

import typer

from fedpeft.cli.adapter_versions import AdapterArgument
from fedpeft.cli.remote_options import (
    IdentityOption,
    JsonOption,
    ServerOption,
    connect,
    echo_json,
    moment,
    print_table,
)


def lineage(
    adapter: AdapterArgument,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Also as a picture: .svg or .png."),
    ] = None,
    server: ServerOption = None,
    identity: IdentityOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the versions that one was made from and those made from it, and whose rows entered."""
    with connect(server, identity) as connection:
        found = connection.lineage(adapter)
        named = connection.get_adapter(adapter).digest
    if output is not None:
        from fedpeft.report.lineage import LineageNode, draw_lineage

        nodes = [
            LineageNode(
                digest=v.digest,
                run_id=v.run_id,
                round=v.round,
                parent=v.parent,
                withdrawn=v.status == "withdrawn",
                method=v.method,
                clients=tuple(v.cohort),
                aliases=v.aliases,
                named=v.digest == named,
            )
            for v in found
        ]
        draw_lineage(nodes, output)
    if as_json:
        echo_json(found)
        return
    rows = [
        (
            ("→ " if v.digest == named else "  ") + v.digest[:12],
            f"{v.run_id}, round {v.round}",
            (v.parent or "")[:12],
            v.method,
            ", ".join(f"{c} ({d[:8]})" if d else c for c, d in v.cohort.items()),
            ", ".join(v.aliases) or ("withdrawn" if v.status == "withdrawn" else ""),
            moment(v.created_at),
        )
        for v in found
    ]
    titles = ("  adapter", "run", "made from", "method", "clients (rows)", "in use", "made (UTC)")
    print_table(titles, rows)
    if output is not None:
        typer.echo(f"picture  {output}")
