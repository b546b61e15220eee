"""How a running client shows what happens: lines for people, lines for programs, or a table."""

import json
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

import typer

from fedpeft.report import text
from fedpeft_client import events
from fedpeft_client.events import Event

if TYPE_CHECKING:
    from rich.table import Table

_LONGEST_LINE = 2000


class JsonLines:
    """One JSON object for each event, on standard output."""

    def __call__(self, event: Event) -> None:
        """Writes it."""
        typer.echo(json.dumps(asdict(event), sort_keys=True))


class Lines:
    """A line for each event that a person wants to know of."""

    def __init__(self, *, named: bool) -> None:
        """With `named` each line begins with the client's name."""
        self._named = named

    def __call__(self, event: Event) -> None:
        """Writes it."""
        line = _line(event)
        if line:
            name = f"{text.printable(event.client_id, 30)}: " if self._named else ""
            typer.echo(f"{datetime.now():%H:%M:%S}  {name}{line}"[:_LONGEST_LINE])


class ClientTable:
    """A line for each of several clients, kept up to date; use it in a `with` block."""

    def __init__(self) -> None:
        """Shows nothing yet."""
        from rich.live import Live

        self._rows: dict[str, dict[str, str]] = {}
        self._lock = threading.Lock()
        self._live = Live(get_renderable=self._table, refresh_per_second=4)

    def __enter__(self) -> "ClientTable":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def __call__(self, event: Event) -> None:
        """Takes it in."""
        with self._lock:
            row = self._rows.setdefault(event.client_id, {"client": event.client_id})
            row.update(_cells(event))

    def _table(self) -> "Table":
        from rich.table import Table
        from rich.text import Text

        columns = ("client", "rows", "server", "doing", "round", "ε spent", "note")
        table = Table(*columns, box=None, padding=(0, 2, 0, 0), pad_edge=False)
        with self._lock:
            for row in self._rows.values():
                table.add_row(*(Text(text.printable(row.get(c, ""), 60)) for c in columns))
        return table


def output(*, as_json: bool, num_clients: int) -> "Callable[[Event], None]":
    """Returns what shows events: for a program, or for a person, at a terminal or in a log."""
    if as_json:
        return JsonLines()
    if num_clients > 1 and sys.stdout.isatty():
        return ClientTable()
    return Lines(named=num_clients > 1)


def _line(event: Event) -> str:
    body, run = event.body, f"run {event.run_id}"
    where = run if event.round is None else f"{run} round {event.round}"
    match event.kind:
        case events.READY:
            return (
                f"{text.count(body['num_rows'])} rows; {_budget(body)}; state in {body['folder']}"
            )
        case events.CONNECTING:
            return "connecting"
        case events.CONNECTED:
            return "connected; waiting for runs"
        case events.OFFERED:
            name = text.printable(body["name"], 80)
            return f"{run} is offered: {name}, {body['num_rounds']} rounds"
        case events.ACCEPTED:
            return f"{run}: taking part"
        case events.ROUND_STARTED:
            return f"{where} of {body['num_rounds']}: asked"
        case events.ROUND_FINISHED:
            seconds = text.duration(body["train_seconds"])
            return (
                f"{where} of {body['num_rounds']}: trained in {seconds}, answered; {_budget(body)}"
            )
        case events.REFUSED:
            return f"{where}: refused ({body['code']})"
        case events.NOTE:
            return "\n          ".join(text.printable(line) for line in body["text"].splitlines())
        case events.STOPPING:
            return "stopping after what is being trained; once more to stop at once"
        case events.STOPPED:
            return "stopped"
    return ""


def _cells(event: Event) -> dict[str, str]:
    body = event.body
    match event.kind:
        case events.READY:
            return {"rows": text.count(body["num_rows"]), "ε spent": _spent(body)}
        case events.CONNECTING:
            return {"server": "connecting"}
        case events.CONNECTED:
            return {"server": "connected", "doing": "waiting"}
        case events.ROUND_STARTED:
            return {"doing": "asked", "round": f"{event.round}/{body['num_rounds']}"}
        case events.STEP:
            return {"doing": f"step {body['step']}/{body['num_steps']}"}
        case events.ROUND_FINISHED:
            return {"doing": "waiting", "ε spent": _spent(body)}
        case events.REFUSED:
            return {"doing": f"refused ({body['code']})"}
        case events.NOTE:
            return {"note": body["text"].splitlines()[-1] if body["text"] else ""}
        case events.STOPPING | events.STOPPED:
            return {"doing": event.kind}
    return {}


def _budget(body: dict[str, Any]) -> str:
    if body["epsilon_budget"] is None:
        return "no budget: only for runs without privacy"
    return f"ε {_spent(body)} is spent at δ {text.delta(body['delta'])}"


def _spent(body: dict[str, Any]) -> str:
    if body["epsilon_budget"] is None:
        return ""
    return f"{text.epsilon(body['epsilon_spent'])} of {text.budget(body['epsilon_budget'])}"
