"""`fedpeft removal`: have data forgotten by the adapter in use."""

from typing import Annotated

import typer

from fedpeft.cli import removal_follow, removal_here, removal_receipt, removal_request
from fedpeft.cli.remote_options import (
    IdentityOption,
    JsonOption,
    ServerOption,
    connect,
    echo_json,
    moment,
    print_table,
)
from fedpeft.cli.removal_options import RequestArgument

app = typer.Typer(no_args_is_help=True, help="Have data forgotten by the adapter in use.")
app.command("plan")(removal_request.plan)
app.command("request")(removal_request.request)
app.command("run")(removal_here.run)


@app.command("list")
def list_(
    client: Annotated[
        str, typer.Option("--client", metavar="NAME", help="Only about this client's data.")
    ] = "",
    server: ServerOption = None,
    identity: IdentityOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show requests, oldest first: a data owner sees its own, an operator or auditor all."""
    from fedpeft.cli.removal_view import removal_json

    with connect(server, identity) as connection:
        removals = connection.list_removals(client)
    if as_json:
        echo_json([removal_json(removal) for removal in removals])
        return
    rows = [
        (
            removal.request_id,
            removal.state,
            removal.order.client_id,
            str(removal.order.num_records),
            removal.order.method,
            moment(removal.order.deadline),
            moment(removal.created_at),
        )
        for removal in removals
    ]
    titles = ("removal", "state", "client", "records", "method", "deadline", "asked (UTC)")
    print_table(titles, rows)


@app.command()
def status(
    request_id: RequestArgument,
    server: ServerOption = None,
    identity: IdentityOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a request, its plan and where it stands."""
    from fedpeft.cli.removal_view import removal_json, show_plan, show_removal

    with connect(server, identity) as connection:
        removal = connection.get_removal(request_id)
    if as_json:
        echo_json(removal_json(removal))
        return
    show_removal(removal)
    typer.echo()
    show_plan(removal.plan)


app.command("watch")(removal_follow.watch)


@app.command()
def cancel(
    request_id: RequestArgument,
    reason: Annotated[str, typer.Option(help="Why, for those who watch.")] = "",
    server: ServerOption = None,
    identity: IdentityOption = None,
    as_json: JsonOption = False,
) -> None:
    """End a request before anything of it is published. Marked rows stay marked."""
    from fedpeft.cli.removal_view import removal_json, show_removal

    with connect(server, identity) as connection:
        removal = connection.cancel_removal(request_id, reason)
    if as_json:
        echo_json(removal_json(removal))
    else:
        show_removal(removal)


app.command("receipt")(removal_receipt.receipt)
app.command("verify")(removal_receipt.verify)
