"""`fedpeft pki`: keys, certificates with roles, and the authority that issues and revokes them."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedpeft.identity.roles import Role

if TYPE_CHECKING:
    from fedpeft.identity.authority import Issued

app = typer.Typer(
    no_args_is_help=True,
    help="Make keys on the machines that use them; issue and revoke certificates with roles.",
)
_AuthorityOption = Annotated[
    Path, typer.Option("--ca", metavar="FOLDER", help="The authority's folder.")
]
_JsonOption = Annotated[bool, typer.Option("--json", help="As JSON.")]


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="New folder of the authority.")],
    name: Annotated[str, typer.Option(help="What the authority is called.")] = "fedpeft",
) -> None:
    """Make an authority. Keep its key off the server, and back it up."""
    from fedpeft.identity.authority import CERTIFICATE, Authority

    Authority.create(folder, name)
    typer.echo(f"give every machine {folder / CERTIFICATE}")


@app.command()
def request(
    name: Annotated[str, typer.Argument(help="Of the holder, such as the organisation's.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for key and request.")],
) -> None:
    """Make a key on this machine and a request for a certificate; only the request leaves it."""
    from fedpeft.identity.keys import common_name, new_key, write_request

    common_name(name)
    key = new_key(output / "key.pem")
    write_request(key, name, output / "request.pem")
    typer.echo(f"send {output / 'request.pem'} to the operator; {output / 'key.pem'} stays here")


@app.command()
def issue(
    request: Annotated[Path, typer.Argument(help="What `fedpeft pki request` wrote.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File for the certificate.")],
    ca: _AuthorityOption,
    role: Annotated[list[Role], typer.Option(help="What the holder may be; repeatable.")],
    days: Annotated[int, typer.Option(help="Validity.")] = 365,
    host: Annotated[
        list[str] | None,
        typer.Option(help="Name or address that a server is called by; repeatable."),
    ] = None,
    renew: Annotated[
        bool, typer.Option("--renew", help="Although the name holds a valid certificate.")
    ] = False,
    as_json: _JsonOption = False,
) -> None:
    """Sign a request. Its name and key are taken; the roles are yours to give."""
    from fedpeft.identity.authority import Authority

    issued = Authority(ca).issue(request, role, output, days=days, hosts=host or [], renew=renew)
    _show([issued], as_json)


@app.command()
def revoke(
    serial: Annotated[str, typer.Argument(help="Of the certificate; see `fedpeft pki list`.")],
    ca: _AuthorityOption,
    as_json: _JsonOption = False,
) -> None:
    """Take a certificate back; then give the server the new revocation list."""
    from fedpeft.identity.authority import REVOKED, Authority

    issued = Authority(ca).revoke(serial)
    _show([issued], as_json)
    typer.echo(f"give the server {ca / REVOKED}", err=True)


@app.command()
def refresh(ca: _AuthorityOption) -> None:
    """Write the revocation list anew; it expires after 30 days."""
    from fedpeft.identity.authority import REVOKED, Authority

    Authority(ca).refresh()
    typer.echo(f"give the server {ca / REVOKED}")


@app.command("list")
def list_(ca: _AuthorityOption, as_json: _JsonOption = False) -> None:
    """Show every certificate that was issued."""
    from fedpeft.identity.authority import Authority

    _show(Authority(ca).issued(), as_json)


def _show(certificates: "list[Issued]", as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps([_as_json(issued) for issued in certificates], indent=2))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("serial", "name", "roles", "valid until (UTC)", "revoked", box=None)
    for issued in certificates:
        revoked = issued.revoked_at
        table.add_row(
            issued.serial,
            Text(issued.name),
            ", ".join(sorted(issued.roles)),
            f"{issued.not_after:%Y-%m-%d %H:%M}",
            f"{revoked:%Y-%m-%d %H:%M}" if revoked else "",
            style="red" if revoked else None,
        )
    Console().print(table)


def _as_json(issued: "Issued") -> dict[str, Any]:
    revoked = issued.revoked_at
    return {
        "serial": issued.serial,
        "name": issued.name,
        "roles": sorted(issued.roles),
        "not_after": issued.not_after.isoformat(),
        "revoked_at": revoked.isoformat() if revoked else None,
    }
