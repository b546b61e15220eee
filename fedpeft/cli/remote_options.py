"""What commands that call a server have in common."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedpeft.errors import InputError

if TYPE_CHECKING:
    from fedpeft.remote import Connection

ServerOption = Annotated[
    str | None,
    typer.Option(
        "--server",
        envvar="FEDPEFT_SERVER",
        metavar="HOST[:PORT]",
        help="Its certificate must be for this host.",
        show_default=False,
    ),
]
IdentityOption = Annotated[
    Path | None,
    typer.Option(
        "--identity",
        envvar="FEDPEFT_IDENTITY",
        metavar="FOLDER",
        help="With key.pem, cert.pem and authority.cert.pem; see `fedpeft pki`.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="As JSON.")]


def connect(server: str | None, identity: Path | None, *, patience_s: float = 10.0) -> "Connection":
    """Prepares a connection.

    Args:
        server: As given on the command line.
        identity: The same.
        patience_s: How long to ask again while the server is unavailable.

    Raises:
        InputError: If the server or the identity was not named.
    """
    if server is None:
        raise InputError("name the server with --server, or in FEDPEFT_SERVER")
    if identity is None:
        raise InputError("name the folder with your certificate: --identity, or FEDPEFT_IDENTITY")
    from fedpeft.remote import Connection

    return Connection.open(server, identity, patience_s=patience_s)


def echo_json(value: Any) -> None:
    """Prints a record, or a list of them, as JSON."""
    typer.echo(json.dumps(as_json(value), indent=2, sort_keys=True))


def as_json(value: Any) -> Any:
    """Returns a record as what JSON can say."""
    if isinstance(value, list | tuple):
        return [as_json(entry) for entry in value]
    found = asdict(value) if hasattr(value, "__dataclass_fields__") else value
    return json.loads(json.dumps(found, default=_plain))


def print_table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Prints lines under titles; what a server sent is escaped, never read as markup."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from fedpeft.report.text import printable

    table = Table(*titles, box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    Console().print(table)


def moment(value: datetime | None) -> str:
    """Returns a time to the minute, in UTC; nothing where there is none."""
    return f"{value:%Y-%m-%d %H:%M}" if value else ""


def largest(epsilon: Iterable[float]) -> str:
    """Returns the largest ε as it is shown; nothing where there is none."""
    from fedpeft.report.text import epsilon as shown

    values = list(epsilon)
    return shown(max(values)) if values else ""


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, frozenset):
        return sorted(value)
    return str(value)
