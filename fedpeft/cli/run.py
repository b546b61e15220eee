"""`fedpeft run`: submit runs to a server, watch them, stop and resume them."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedpeft.cli.remote_options import (
    IdentityOption,
    JsonOption,
    ServerOption,
    as_json,
    connect,
    echo_json,
    moment,
    print_table,
)

if TYPE_CHECKING:
    from fedpeft.remote import Connection
    from fedpeft.remote.records import Run

app = typer.Typer(no_args_is_help=True, help="Submit runs to a server and follow them.")

_STOPPED, _FAILED = 130, 3
_PATIENCE_S = 300.0  # a server that is upgraded meanwhile does not end the watching
_RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Id of the run.")]


@app.command()
def submit(
    config: Annotated[Path, typer.Argument(help="The run as TOML.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a key; repeatable."),
    ] = None,
    start_from: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="ADAPTER",
            help="Go on from this version: an alias, a digest or a run; same base model, rank and "
            "modules.",
            show_default=False,
        ),
    ] = "",
    key: Annotated[
        str | None,
        typer.Option("--key", help="The same key again gives the same run, not a second one."),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--watch", help="Stay until it has ended, as `fedpeft run watch` does.")
    ] = False,
    server: ServerOption = None,
    identity: IdentityOption = None,
    as_json_text: JsonOption = False,
) -> None:
    """Submit a run. The file that data.test names goes with it; no other file leaves here."""
    from fedpeft.config import load_config

    loaded = load_config(config, overrides or [])
    # What was not set is left out: it is the server's to decide, and a default counts as set.
    content = loaded.model_dump(mode="json", exclude_unset=True)
    test = loaded.data.test
    held_out = Path(test) if test and ":" not in test and Path(test).is_file() else None
    with connect(server, identity, patience_s=_PATIENCE_S if follow else 10.0) as connection:
        run = connection.submit_run(
            content, held_out=held_out, start_from=start_from, idempotency_key=key
        )
        if not follow:
            _show(run, as_json_text)
            return
        if not as_json_text:
            typer.echo(f"run {run.run_id}", err=True)
        _follow(connection, run.run_id, as_lines=as_json_text)


@app.command("list")
def list_(
    server: ServerOption = None, identity: IdentityOption = None, as_json_text: JsonOption = False
) -> None:
    """Show every run, oldest first."""
    with connect(server, identity) as connection:
        runs = connection.list_runs()
    if as_json_text:
        echo_json(runs)
        return
    rows = [
        (
            run.run_id,
            run.name,
            run.status,
            f"{run.num_rounds_finished}/{run.num_rounds}",
            run.clients,
            run.submitted_by,
            moment(run.submitted_at),
        )
        for run in runs
    ]
    print_table(("run", "name", "status", "rounds", "clients", "by", "submitted (UTC)"), rows)


@app.command()
def show(
    run_id: _RunArgument,
    server: ServerOption = None,
    identity: IdentityOption = None,
    as_json_text: JsonOption = False,
) -> None:
    """Show a run with its rounds and participants."""
    from fedpeft.report import text

    with connect(server, identity) as connection:
        found = connection.get_run(run_id)
    if as_json_text:
        echo_json(found)
        return
    _show(found.run, as_json_text)
    if found.participants:
        typer.echo()
        rows = [
            (
                entry.client_id,
                text.count(entry.num_examples),
                "" if entry.noise_multiplier is None else text.number(entry.noise_multiplier),
                f"{entry.num_updates}/{entry.num_rounds_planned}",
                "" if entry.epsilon_spent is None else text.epsilon(entry.epsilon_spent),
            )
            for entry in found.participants
        ]
        print_table(("client", "rows", "noise multiplier", "rounds", "ε spent"), rows)
    if found.rounds:
        typer.echo()
        lines = [
            (
                str(entry.round),
                ", ".join(f"{name} {text.metric(name, x)}" for name, x in entry.metrics.items()),
                text.count(len(entry.cohort)),
                ", ".join(f"{client} ({code})" for client, code in entry.missing.items()),
                text.duration(entry.seconds),
                entry.adapter[:12],
            )
            for entry in found.rounds
        ]
        print_table(("round", "held-out rows", "updates", "missing", "took", "adapter"), lines)


@app.command()
def watch(
    run_id: _RunArgument,
    server: ServerOption = None,
    identity: IdentityOption = None,
    as_lines: Annotated[bool, typer.Option("--json", help="One event a line, as JSON.")] = False,
) -> None:
    """Follow a run until it has ended.

    Exit code 0 if it finished, 3 if it failed, 130 if it was stopped. Ctrl-C leaves the run alone.
    """
    with connect(server, identity, patience_s=_PATIENCE_S) as connection:
        _follow(connection, run_id, as_lines=as_lines)


@app.command()
def stop(
    run_id: _RunArgument,
    reason: Annotated[str, typer.Option(help="Why, for those who watch and for the log.")] = "",
    server: ServerOption = None,
    identity: IdentityOption = None,
    as_json_text: JsonOption = False,
) -> None:
    """Stop a run; it can be resumed. What clients were charged for stays charged."""
    with connect(server, identity) as connection:
        _show(connection.stop_run(run_id, reason), as_json_text)


@app.command()
def resume(
    run_id: _RunArgument,
    server: ServerOption = None,
    identity: IdentityOption = None,
    as_json_text: JsonOption = False,
) -> None:
    """Go on with the open round of a run that was stopped or failed."""
    with connect(server, identity) as connection:
        _show(connection.resume_run(run_id), as_json_text)


def _follow(connection: "Connection", run_id: str, *, as_lines: bool) -> None:
    from fedpeft.remote.records import RunStatus

    try:
        if as_lines:
            for event in connection.watch_run(run_id):
                typer.echo(json.dumps(as_json(event), sort_keys=True))
        else:
            from fedpeft.cli.run_view import RunView

            run = connection.get_run(run_id).run
            with RunView(run.num_rounds) as view:
                for event in connection.watch_run(run_id):
                    view.show(event)
    except KeyboardInterrupt:
        typer.echo(f"the run goes on; again: fedpeft run watch {run_id}", err=True)
        raise typer.Exit(_STOPPED) from None
    run = connection.get_run(run_id).run
    if not as_lines:
        _show(run, as_json_text=False)
    if run.status is not RunStatus.FINISHED:
        raise typer.Exit(_FAILED if run.status is RunStatus.FAILED else _STOPPED)


def _show(run: "Run", as_json_text: bool) -> None:
    if as_json_text:
        echo_json(run)
        return
    from fedpeft.report.text import printable

    rows: list[tuple[str, Any]] = [
        ("run", run.run_id),
        ("name", run.name),
        ("status", f"{run.status}{f': {run.reason}' if run.reason else ''}"),
        ("rounds", f"{run.num_rounds_finished} of {run.num_rounds}"),
        ("clients", run.clients),
        ("submitted", f"{moment(run.submitted_at)} UTC by {run.submitted_by}"),
        ("adapter", run.adapter),
    ]
    for title, value in rows:
        if value:
            typer.echo(f"{title:10s} {printable(str(value))}")
