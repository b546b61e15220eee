"""`fedpeft budget`: what may be spent on which data, what was, and whether the ledger is sound."""

import csv
import io
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedpeft.cli import budget_view as view
from fedpeft.cli.remote_options import IdentityOption, ServerOption, connect, echo_json
from fedpeft.errors import InputError, LedgerError, VerificationError

if TYPE_CHECKING:
    from fedpeft.ledger import Balance, Ledger

app = typer.Typer(no_args_is_help=True, help="See and set what may be spent on which data.")

_LedgerOption = Annotated[
    str | None,
    typer.Option(
        "--ledger",
        envvar="FEDPEFT_LEDGER",
        metavar="PATH_OR_URL",
        help="Default: ~/.local/share/fedpeft/ledger.db.",
        show_default=False,
    ),
]
_DataSetArgument = Annotated[
    str | None,
    typer.Argument(metavar="[DATASET]", help="The first digits of its fingerprint."),
]
_JsonOption = Annotated[bool, typer.Option("--json", help="As JSON.")]


class _Format(StrEnum):
    JSONL = "jsonl"
    CSV = "csv"


@app.command()
def show(
    dataset: _DataSetArgument = None, ledger: _LedgerOption = None, as_json: _JsonOption = False
) -> None:
    """Show every data set with its budget and what is spent of it; red: nothing more fits."""
    with _open(ledger) as opened:
        balances = opened.balances() if dataset is None else [opened.balance(opened.find(dataset))]
    if as_json:
        typer.echo(json.dumps([_as_json(balance) for balance in balances], indent=2))
    else:
        view.print_balances(balances)


@app.command("set")
def set_(
    dataset: _DataSetArgument = None,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="FILE", help="Its rows: .jsonl, .csv or .parquet."),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option("--columns", metavar="A,B", help="Those that identify a row. Default: all."),
    ] = None,
    owner: Annotated[
        str, typer.Option("--owner", help="Only where one ledger serves several owners.")
    ] = "",
    *,
    epsilon: Annotated[float, typer.Option("--epsilon", help="For all runs together.")],
    delta: Annotated[float, typer.Option("--delta", help="Well below one over the rows.")],
    ledger: _LedgerOption = None,
    as_json: _JsonOption = False,
) -> None:
    """Set the budget of a data set that the ledger knows, or of the rows in a file.

    It can be raised, and lowered to what is spent.
    """
    if (dataset is None) == (data is None):
        raise LedgerError("name a data set of the ledger, or its rows with --data FILE")
    if data is None and (columns is not None or owner):
        raise LedgerError("--columns and --owner go with --data FILE")
    from fedpeft.ledger.state import Budget, check_budget

    check_budget(Budget(epsilon, delta))
    rows = None if data is None else _rows(data, columns)
    with _open(ledger, write=True, make=rows is not None) as opened:
        name = opened.find(str(dataset)) if rows is None else opened.register(rows, owner=owner)
        opened.set_budget(name, epsilon=epsilon, delta=delta)
        balance = opened.balance(name)
    if as_json:
        typer.echo(json.dumps(_as_json(balance), indent=2))
    else:
        view.print_balances([balance])


@app.command()
def history(
    dataset: _DataSetArgument = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Also draw ε over events: .svg, .png or .pdf.")
    ] = None,
    ledger: _LedgerOption = None,
    as_json: _JsonOption = False,
) -> None:
    """Show all entries, oldest first, or those that concern one data set."""
    with _open(ledger) as opened:
        name = None if dataset is None else opened.find(dataset)
        entries = list(opened.history())
        if plot is not None:
            from fedpeft.report.plots import save_figure

            name = name or _only_budget(opened.balances())
            drawn = view.figure(entries, opened.balance(name), opened.reservations(name))
            save_figure(drawn, plot)
    if name is not None:
        entries = view.concerning(entries, name)
    if as_json:
        typer.echo(json.dumps([vars(entry) for entry in entries], indent=2))
    else:
        view.print_entries(entries)


@app.command()
def export(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Default: standard output.")
    ] = None,
    form: Annotated[_Format, typer.Option("--format", help="How.")] = _Format.JSONL,
    ledger: _LedgerOption = None,
) -> None:
    """Write the whole chain; it says nothing of the rows but how many there are."""
    with _open(ledger) as opened:
        entries = list(opened.history())
    if form is _Format.JSONL:
        text = "".join(entry.to_json() + "\n" for entry in entries)
    else:
        fields = ("position", "kind", "recorded_at", "clock", "body_text", "previous", "hash")
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow([field.removesuffix("_text") for field in fields])
        writer.writerows([getattr(entry, field) for field in fields] for entry in entries)
        text = buffer.getvalue()
    if output is None:
        typer.echo(text, nl=False)
        return
    from fedpeft.files import write_text

    try:
        write_text(output, text)
    except OSError as error:
        raise InputError(f"{output} cannot be written ({error.strerror})") from error


@app.command()
def verify(
    expect: Annotated[
        str | None,
        typer.Option("--expect", metavar="COUNT:HASH", help="A head that was kept elsewhere."),
    ] = None,
    ledger: _LedgerOption = None,
    as_json: _JsonOption = False,
) -> None:
    """Check the whole ledger and print its head; exit code 3 if anything is wrong.

    Keep the head where nobody who can write the ledger can change it, and give it back with
    --expect: only that shows that entries were cut off at the end.
    """
    from fedpeft.ledger import Head

    expected = None if expect is None else Head.parse(expect)
    try:
        with _open(ledger) as opened:
            head = opened.verify(expected)
    except VerificationError as error:
        if as_json:
            typer.echo(json.dumps({"sound": False, "reason": str(error)}))
        raise
    if as_json:
        found = {"sound": True, "count": head.count, "hash": head.hash, "head": str(head)}
        typer.echo(json.dumps(found))
    else:
        typer.echo(str(head))


@app.command()
def copy(
    target: Annotated[str, typer.Argument(metavar="PATH_OR_URL", help="Where no ledger is yet.")],
    ledger: _LedgerOption = None,
) -> None:
    """Copy the ledger, also from SQLite to PostgreSQL, checked on both sides; print its head.

    Two ledgers that are both used spend twice: go on with one of them.
    """
    with _open(ledger) as opened:
        typer.echo(str(opened.copy_to(target)))


@app.command()
def mirrored(
    client: Annotated[str, typer.Argument(metavar="[CLIENT]", help="Only of this one.")] = "",
    server: ServerOption = None,
    identity: IdentityOption = None,
    as_json: _JsonOption = False,
) -> None:
    """Show budgets as clients last reported them to a server; their own ledgers are what counts."""
    with connect(server, identity) as connection:
        budgets = connection.list_budgets(client)
    if as_json:
        echo_json(budgets)
    else:
        view.print_mirrored(budgets)


def _open(location: str | None, *, write: bool = False, make: bool = False) -> "Ledger":
    from fedpeft.ledger import Ledger

    path: str | Path
    if location is not None:
        path = location
    else:
        home = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
        path = Path(home).expanduser() / "fedpeft" / "ledger.db"
        if make:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if write and not make:
        Ledger.open(path, read_only=True).close()  # refuses to make one
    return Ledger.open(path, read_only=not write)


def _rows(location: str, columns: str | None) -> list[dict[str, object]]:
    from fedpeft.models.sources import read_table

    names = [] if columns is None else [name.strip() for name in columns.split(",")]
    table = read_table(location, names)
    names = names or list(table.columns)
    values = zip(*(table.columns[name] for name in names), strict=True)
    return [dict(zip(names, row, strict=True)) for row in values]


def _as_json(balance: "Balance") -> dict[str, Any]:
    return {**asdict(balance), "remaining": balance.remaining}


def _only_budget(balances: Sequence["Balance"]) -> str:
    found = [balance.fingerprint for balance in balances if balance.epsilon is not None]
    if len(found) != 1:
        raise LedgerError(f"{len(found)} data sets have a budget; name one to draw")
    return found[0]
