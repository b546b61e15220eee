"""`fedpeft server`: set one up, start it, ask how it is, read its audit log."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedpeft.cli.remote_options import (
    IdentityOption,
    JsonOption,
    ServerOption,
    as_json,
    connect,
    echo_json,
    print_table,
)
from fedpeft.errors import VerificationError

if TYPE_CHECKING:
    from fedpeft_server.main import Listening

app = typer.Typer(no_args_is_help=True, help="Run a coordinator, and ask how it is.")
audit_app = typer.Typer(no_args_is_help=True, help="Read and check a server's audit log.")
app.add_typer(audit_app, name="audit")

_CLOCKS_DIFFER_S = 60.0


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="New folder of the server.")],
) -> None:
    """Write a configuration that explains every key."""
    from fedpeft_server.config import write_server_config

    path = write_server_config(folder)
    typer.echo(f"wrote {path}; now, with the authority's folder CA at hand,")
    typer.echo(
        f"  fedpeft pki new coordinator --ca CA --role server --host NAME -o {folder / 'identity'}"
    )
    typer.echo(f"  fedpeft server start --config {path}")


@app.command()
def start(
    config: Annotated[Path, typer.Option("--config", help="What `fedpeft server init` wrote.")],
    as_lines: Annotated[
        bool, typer.Option("--json", help="Say where it listens as one line of JSON.")
    ] = False,
    ready_file: Annotated[
        Path | None, typer.Option("--ready-file", help="Written with that line once it listens.")
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="ADDRESS",
            help="Ray cluster for removal jobs, in place of `removals.ray` of the configuration.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Run a server until it gets SIGTERM or Ctrl-C; runs go on with the next start."""
    import os
    import signal
    import threading

    # Read when grpc is imported. Otherwise whoever fails a handshake writes a line into the log.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

    from fedpeft.files import write_text
    from fedpeft_server.config import load_server_config
    from fedpeft_server.main import serve

    loaded = load_server_config(config)
    if ray is not None:
        removals = loaded.removals.model_copy(update={"ray": ray})
        loaded = loaded.model_copy(update={"removals": removals})
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())

    def announce(listening: "Listening") -> None:
        line = json.dumps(asdict(listening))
        if as_lines:
            typer.echo(line)
        else:
            typer.echo(f"control plane  {loaded.listen.host}:{listening.port}")
            typer.echo(f"fleet          {loaded.listen.fleet_host}:{listening.fleet_port}")
            typer.echo(
                f"metrics        http://{loaded.listen.metrics_host}:{listening.metrics_port}/metrics"
            )
        if ready_file is not None:
            write_text(ready_file, line + "\n")

    try:
        serve(loaded, announce=announce, stop=stop)
    finally:
        if ready_file is not None:
            ready_file.unlink(missing_ok=True)


@app.command()
def status(
    server: ServerOption = None, identity: IdentityOption = None, as_json_text: JsonOption = False
) -> None:
    """Ask a server what it is, and who you are to it."""
    with connect(server, identity) as connection:
        info = connection.get_server()
        apart_s = (datetime.now(UTC) - info.time).total_seconds()
    if as_json_text:
        typer.echo(json.dumps({**as_json(info), "clocks_apart_s": round(apart_s, 3)}, indent=2))
        return
    typer.echo(
        f"fedpeft {info.version}, protocols {info.oldest_protocol} to {info.newest_protocol}"
    )
    typer.echo(f"fleet at {info.fleet_address}, app {info.bundle_digest}")
    typer.echo(f"you are {info.caller}: {', '.join(sorted(info.caller_roles))}")
    if abs(apart_s) > _CLOCKS_DIFFER_S:
        typer.echo(
            f"its clock and this one are {abs(apart_s):.0f} s apart; beyond 300 s signed requests "
            "are refused",
            err=True,
        )


@audit_app.command("list")
def audit_list(
    after: Annotated[int, typer.Option(min=0, help="Entries after this position.")] = 0,
    server: ServerOption = None,
    identity: IdentityOption = None,
    as_json_text: JsonOption = False,
) -> None:
    """Show who asked for what, and what came of it."""
    with connect(server, identity) as connection:
        entries = list(connection.audit(after=after))
    if as_json_text:
        echo_json(entries)
        return
    rows = [
        (
            str(entry.position),
            f"{entry.at:%Y-%m-%d %H:%M:%S}",
            entry.actor,
            entry.action.removeprefix("/fedpeft.wire.v1."),
            entry.subject,
            entry.outcome,
        )
        for entry in entries
    ]
    print_table(("entry", "time (UTC)", "who", "asked for", "on", "outcome"), rows)


@audit_app.command("verify")
def audit_verify(
    expect: Annotated[
        str | None,
        typer.Option("--expect", metavar="COUNT:HASH", help="A head that was kept elsewhere."),
    ] = None,
    server: ServerOption = None,
    identity: IdentityOption = None,
    as_json_text: JsonOption = False,
) -> None:
    """Check the chain of the whole log on this machine and print its head.

    Exit code 3 if anything is wrong. Keep the head away from the server and give it back with
    --expect: only that shows that entries were cut off at the end.
    """
    from fedpeft.ledger.chain import Head
    from fedpeft.remote.audit_log import verify_audit_log

    try:
        expected = None if expect is None else Head.parse(expect)
        with connect(server, identity) as connection:
            head = verify_audit_log(connection.audit(), expected)
    except VerificationError as error:
        if as_json_text:
            typer.echo(json.dumps({"sound": False, "reason": str(error)}))
        raise
    if as_json_text:
        typer.echo(json.dumps({"sound": True, "head": str(head), "count": head.count}))
    else:
        typer.echo(str(head))
