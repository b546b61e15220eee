"""`fedpeft client invite|list|revoke`: what an operator does with clients."""

from typing import Annotated

import typer

from fedpeft.cli.remote_options import (
    IdentityOption,
    JsonOption,
    ServerOption,
    connect,
    echo_json,
    moment,
    print_table,
)

_NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="As in its certificate.")]


def invite(
    name: _NameArgument,
    hours: Annotated[int, typer.Option(min=1, help="How long the token can be used.")] = 72,
    server: ServerOption = None,
    identity: IdentityOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a token that a client enrols with, once. It is shown here and kept nowhere."""
    with connect(server, identity) as connection:
        made = connection.invite_client(name, valid_hours=hours)
    if as_json:
        echo_json(made)
        return
    typer.echo(made.token)
    typer.echo(f"for {name}, once, until {moment(made.expires_at)} UTC", err=True)


def list_(
    server: ServerOption = None, identity: IdentityOption = None, as_json: JsonOption = False
) -> None:
    """Show the clients that you may see."""
    with connect(server, identity) as connection:
        clients = connection.list_clients()
    if as_json:
        echo_json(clients)
        return
    rows = [
        (
            client.client_id,
            "revoked" if client.revoked_at else "online" if client.online else "away",
            moment(client.enrolled_at),
            moment(client.last_seen),
            moment(client.revoked_at),
            client.version,
            client.certificate_serial,
        )
        for client in clients
    ]
    print_table(
        ("client", "state", "enrolled (UTC)", "last answer", "revoked", "fedpeft", "serial"), rows
    )


def revoke(
    name: _NameArgument,
    reason: Annotated[str, typer.Option(help="For the log.")],
    server: ServerOption = None,
    identity: IdentityOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a client out, also where it is connected now; revoke its certificate as well."""
    with connect(server, identity) as connection:
        client = connection.revoke_client(name, reason)
    if as_json:
        echo_json(client)
        return
    typer.echo(f"{client.client_id} was revoked at {moment(client.revoked_at)} UTC")
    typer.echo(
        f"its certificate is still good for TLS until: fedpeft pki revoke "
        f"{client.certificate_serial} --ca CA",
        err=True,
    )
