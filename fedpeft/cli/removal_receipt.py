"""`fedpeft removal receipt|verify`: the signed receipt, and its check without a server."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedpeft.cli.adapter_files import AuthorityOption, KeyOption, trust
from fedpeft.cli.remote_options import (
    IdentityOption,
    JsonOption,
    ServerOption,
    connect,
    echo_json,
)
from fedpeft.cli.removal_options import RequestArgument
from fedpeft.errors import InputError

if TYPE_CHECKING:
    from fedpeft.unlearning.receipt import Receipt

_OutputOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="Default: standard output."),
]
_HtmlOption = Annotated[
    Path | None,
    typer.Option(
        "--html", metavar="FILE", help="A page for a person, besides.", show_default=False
    ),
]


def receipt(
    request_id: RequestArgument,
    output: _OutputOption = None,
    html: _HtmlOption = None,
    server: ServerOption = None,
    identity: IdentityOption = None,
) -> None:
    """Save the signed receipt of a request, checked against your authority's certificate."""
    from fedpeft.files import write_text
    from fedpeft.identity.credentials import AUTHORITY

    with connect(server, identity) as connection:
        document = connection.get_receipt(request_id)
    assert identity is not None
    _checked(document, identity / AUTHORITY, None, html)
    if output is None:
        typer.echo(document)
    else:
        write_text(output, document + "\n")
        typer.echo(str(output))


def verify(
    document: Annotated[Path, typer.Argument(metavar="RECEIPT", help="What `receipt` saved.")],
    authority: AuthorityOption = None,
    key: KeyOption = None,
    html: _HtmlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a receipt offline: who signed it, that nothing was changed, that it fits together."""
    from fedpeft.report.text import count, delta, epsilon, printable

    try:
        text = document.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{document} cannot be read ({error})") from error
    found = _checked(text, authority, key, html)
    if as_json:
        echo_json(found.to_body())
        return
    request = found.request
    rows = [
        ("removal", request.request_id),
        ("records", f"{count(request.num_records)} of {request.client_id}"),
        ("digest", request.records_digest),
        ("claim", f"{found.claim}, by {found.method}"),
        ("measured", f"by the {found.measured_by}" if found.gate else "by nobody"),
        ("withdrawn", ", ".join(digest[:12] for digest in found.affected)),
        ("successor", found.successor),
        ("guarantee", found.guarantee),
        *(
            ("epsilon", f"{name}: {epsilon(value.epsilon)} at delta {delta(value.delta)}")
            for name, value in sorted(found.epsilon.items())
        ),
        ("audit log", f"continues {found.audit_head}"),
        *(("limit", line) for line in found.limits),
    ]
    typer.echo("signed, unchanged, and it fits together:")
    for title, value in rows:
        typer.echo(f"{title:10s} {printable(value)}")


def _checked(
    document: str, authority: Path | None, key: Path | None, html: Path | None
) -> "Receipt":
    """The receipt in a document, if it is one; as a page too, where one is asked for."""
    from fedpeft.files import write_text
    from fedpeft.unlearning.receipt import verify_receipt

    found = verify_receipt(document, trust(authority, key))
    if html is not None:
        from fedpeft.report.receipt import receipt_html

        write_text(html, receipt_html(found))
    return found
