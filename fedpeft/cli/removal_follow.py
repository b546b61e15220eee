"""`fedpeft removal watch`, also as the end of a request: until the request has ended."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from fedpeft.cli.remote_options import IdentityOption, ServerOption, as_json, connect
from fedpeft.cli.removal_options import RequestArgument

if TYPE_CHECKING:
    from fedpeft.remote import Connection

_CANCELLED, _FAILED = 130, 3
PATIENCE_S = 300.0  # a server that is upgraded meanwhile does not end the watching


def watch(
    request_id: RequestArgument,
    server: ServerOption = None,
    identity: IdentityOption = None,
    as_lines: Annotated[bool, typer.Option("--json", help="One event a line, as JSON.")] = False,
) -> None:
    """Follow a request until it has ended, and what is served has followed.

    Exit code 0 if its successor was published, 3 if it failed, 130 if it was cancelled. Ctrl-C
    leaves the request alone.
    """
    with connect(server, identity, patience_s=PATIENCE_S) as connection:
        follow(connection, request_id, as_lines=as_lines)


def follow(connection: "Connection", request_id: str, *, as_lines: bool) -> None:
    """Shows what happens to a request until it has ended.

    Raises:
        typer.Exit: Unless its successor was published.
    """
    from fedpeft.cli.removal_view import RemovalView, show_removal
    from fedpeft.remote.removal_records import RemovalState

    try:
        if as_lines:
            for event in connection.watch_removal(request_id):
                typer.echo(json.dumps(as_json(event), sort_keys=True))
        else:
            with RemovalView() as view:
                for event in connection.watch_removal(request_id):
                    view.show(event)
    except KeyboardInterrupt:
        typer.echo(f"the request goes on; again: fedpeft removal watch {request_id}", err=True)
        raise typer.Exit(_CANCELLED) from None
    removal = connection.get_removal(request_id)
    if not as_lines:
        show_removal(removal)
    if removal.state is not RemovalState.PUBLISHED:
        raise typer.Exit(_FAILED if removal.state is RemovalState.FAILED else _CANCELLED)
