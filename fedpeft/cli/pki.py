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
_RoleOption = Annotated[list[Role], typer.Option(help="What the holder may be; repeatable.")]
_DaysOption = Annotated[int, typer.Option(help="Validity.")]
_HostOption = Annotated[
    list[str] | None,
    typer.Option(help="Name or address that a server is called by; repeatable."),
]
_RenewOption = Annotated[
    bool, typer.Option("--renew", help="Although the name holds a valid certificate.")
]


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
    from fedpeft.identity.credentials import AUTHORITY, CERTIFICATE, KEY, REQUEST
    from fedpeft.identity.folders import request_in

    request_in(output, name)
    typer.echo(f"send {output / REQUEST} to the operator; {output / KEY} stays here")
    typer.echo(f"what comes back, {CERTIFICATE} and {AUTHORITY}, goes into {output}")


@app.command()
def issue(
    request: Annotated[Path, typer.Argument(help="What `fedpeft pki request` wrote.")],
    ca: _AuthorityOption,
    role: _RoleOption,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder to send back. Default: that of the request."),
    ] = None,
    days: _DaysOption = 365,
    host: _HostOption = None,
    renew: _RenewOption = False,
    as_json: _JsonOption = False,
) -> None:
    """Sign a request. Its name and key are taken; the roles are yours to give.

    The folder gets cert.pem and authority.cert.pem, and for a server revoked.crl.pem: send them
    back.
    """
    from fedpeft.identity.folders import issue_into

    folder = output or request.parent
    issued = issue_into(folder, request, ca, role, days=days, hosts=host or (), renew=renew)
    _show([issued], as_json)


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Of the holder.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder of the holder.")],
    ca: _AuthorityOption,
    role: _RoleOption,
    days: _DaysOption = 365,
    host: _HostOption = None,
    as_json: _JsonOption = False,
) -> None:
    """Make a key and sign its certificate in one step, where both are on this machine."""
    from fedpeft.identity.credentials import REQUEST
    from fedpeft.identity.folders import issue_into, request_in

    request_in(output, name)
    _show([issue_into(output, output / REQUEST, ca, role, days=days, hosts=host or ())], as_json)


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(help="Of a holder: key.pem, cert.pem and so on.")],
    as_json: _JsonOption = False,
) -> None:
    """Check a holder's folder and show who it makes you."""
    from fedpeft.identity.certificates import roles_of
    from fedpeft.identity.credentials import Credentials

    found = Credentials.in_folder(folder)
    certificate = found.certificate
    shown = {
        "name": found.name,
        "roles": sorted(roles_of(certificate)),
        "serial": f"{certificate.serial_number:x}",
        "not_after": certificate.not_valid_after_utc.isoformat(),
    }
    if as_json:
        typer.echo(json.dumps(shown, indent=2))
        return
    typer.echo(f"{found.name}: {', '.join(shown['roles'])}; serial {shown['serial']}")
    typer.echo(f"valid until {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC")


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
