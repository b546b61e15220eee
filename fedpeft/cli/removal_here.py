"""`fedpeft removal run`: a removal job on this machine, whose rows do not leave it."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from fedpeft.cli import removal_options as options
from fedpeft.cli.client_status import only_client
from fedpeft.cli.remote_options import IdentityOption, JsonOption, ServerOption, connect, echo_json

if TYPE_CHECKING:
    from fedpeft.models.table import Table
    from fedpeft.remote import Connection
    from fedpeft.remote.removal_records import Removal
    from fedpeft_client.removals import Asked, Submitted


def run(
    request_id: options.RequestArgument,
    state: options.StateOption = None,
    retain: options.RetainOption = 256,
    held_out: options.HeldOutOption = None,
    measure: options.MeasureOption = True,
    server: ServerOption = None,
    identity: IdentityOption = None,
    as_json: JsonOption = False,
) -> None:
    """Do the job of your own request on this machine, and send the adapter. Again after a crash.

    `fedpeft removal request --here` does it by itself. What a private job made is sent once, and is
    charged once, however often this is run.
    """
    from fedpeft.cli.removal_view import removal_json, show_removal
    from fedpeft.models.sources import read_table

    with connect(server, identity) as connection:
        assert identity is not None
        removal = do_here(
            connection,
            identity,
            state or only_client(),
            request_id,
            held_out=read_table(str(held_out), []) if held_out is not None else None,
            retain=retain,
            measure=measure,
        )
    if as_json:
        echo_json(removal_json(removal))
    else:
        show_removal(removal)


def do_here(
    connection: "Connection",
    identity: Path,
    folder: Path,
    request_id: str,
    *,
    held_out: "Table | None",
    retain: int,
    measure: bool,
    asked: "Asked | None" = None,
) -> "Removal":
    """Does the job, with a bar, and shows what was measured for the owner alone.

    Args:
        connection: To the server, as the client.
        identity: Folder with the client's key and certificates.
        folder: Of the client.
        request_id: The request.
        held_out: Rows that nobody trained on.
        retain: Rows that stay that a job without privacy looks at, at most.
        measure: Measure what a private job made.
        asked: What was asked for just now; None: what was written down then.

    Raises:
        FedpeftError: As `fedpeft_client.removals.ClientRemovals`.
    """
    from fedpeft.cli.removal_view import RemovalView
    from fedpeft.identity.credentials import Credentials
    from fedpeft.remote.removal_records import RemovalEvent
    from fedpeft_client.removals import ClientRemovals
    from fedpeft_client.state_folder import StateFolder
    from fedpeft_server.removals import events

    with RemovalView() as view:

        def told(phase: str, share: float) -> None:
            body = {"phase": phase, "share": share}
            at = datetime.now(UTC)
            view.show(RemovalEvent(position=0, at=at, kind=events.PROGRESS, body=body))

        job = ClientRemovals(connection, Credentials.in_folder(identity), StateFolder(folder), told)
        if asked is not None:
            job.remember(request_id, asked)
        done = job.run(request_id, held_out=held_out, num_retain=retain, measured=measure)
    _show_measured(done)
    return done.removal


def _show_measured(done: "Submitted") -> None:
    from fedpeft.report.text import number, printable

    if done.problem:
        typer.echo(f"not measured: {printable(done.problem)}", err=True)
    if done.gate is None:
        return
    typer.echo("For you alone, and of no noise: keep these figures on this machine.", err=True)
    for precision, some in done.gate.precisions.items():
        for found in some:
            if found.after is not None:
                before = "" if found.before is None else f"{number(found.before.value)} -> "
                said = f"{before}{number(found.after.value)}"
                typer.echo(f"  {precision:5s} {found.name:40s} {said}", err=True)
