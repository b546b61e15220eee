"""`fedpeft doctor`: whether this machine can take part in a federation."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fedpeft_client.doctor.finding import Finding

_NOT_READY = 2
_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red", "skipped": "dim"}


def doctor(
    server: Annotated[
        str | None,
        typer.Argument(
            metavar="[SERVER]",
            envvar="FEDPEFT_SERVER",
            help="host or host:port. Left out: only what needs no server is looked at.",
            show_default=False,
        ),
    ] = None,
    identity: Annotated[
        Path | None,
        typer.Option(
            "--identity",
            envvar="FEDPEFT_IDENTITY",
            metavar="FOLDER",
            help="With key.pem, cert.pem and authority.cert.pem; see `fedpeft pki`.",
            show_default=False,
        ),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(
            "--state",
            metavar="FOLDER",
            help="The client's; there may be none yet.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", metavar="FILE", help="The rows.", show_default=False)
    ] = None,
    columns: Annotated[
        str,
        typer.Option(
            "--columns",
            metavar="A,B",
            help="Columns that each row must have a value in.",
            show_default=False,
        ),
    ] = "",
    ledger: Annotated[
        str | None,
        typer.Option(
            "--ledger",
            envvar="FEDPEFT_LEDGER",
            metavar="PATH_OR_URL",
            help="Where it is, if not in --state.",
            show_default=False,
        ),
    ] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="A CUDA device is needed.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Check this machine before it joins; nothing is changed. Exit code 2 if something fails.

    Certificate, both ports, clock, protocol, policy, rows, ledger, disk, memory, processors, GPU
    and the base models that the policy allows.
    """
    from fedpeft.remote import ServerAddress
    from fedpeft_client.doctor.examine import examine
    from fedpeft_client.doctor.machine import Machine

    machine = Machine(
        server=None if server is None else ServerAddress.parse(server),
        identity=identity,
        state=state,
        data=data,
        columns=tuple(name.strip() for name in columns.split(",") if name.strip()),
        ledger=ledger,
        needs_gpu=gpu,
    )
    findings = list(examine(machine))
    ready = not any(finding.grade == "fail" for _, finding in findings)
    if as_json:
        lines = [{"check": name, **asdict(finding)} for name, finding in findings]
        shown = {"ready": ready, "findings": lines}
        typer.echo(json.dumps(shown, indent=2, ensure_ascii=False))
    else:
        _print(findings)
        typer.echo("ready" if ready else "not ready: put right what fails")
    if not ready:
        raise typer.Exit(_NOT_READY)


def _print(findings: "Sequence[tuple[str, Finding]]") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from fedpeft.report.text import printable

    table = Table.grid(padding=(0, 2))
    for _ in range(2):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, finding in findings:
        found = Text(printable(finding.found))
        if finding.remedy:
            found.append("\n→ " + printable(finding.remedy), style="italic")
        table.add_row(name, Text(finding.grade, style=_STYLES[finding.grade]), found)
    Console().print(table)
