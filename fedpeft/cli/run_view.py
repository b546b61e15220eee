"""What `fedpeft run watch` shows: a line for whatever happens, and on a terminal a bar of rounds.

What comes from a server is untrusted: it is escaped and never read as markup.
"""

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from fedpeft.remote.records import RunEvent
from fedpeft.report import text
from fedpeft_server import events

_LONGEST = 300


class RunView:
    """Shows the events of one run."""

    def __init__(self, num_rounds: int, console: Console | None = None) -> None:
        """Takes the number of rounds, and where to show it; standard error by default."""
        self._console = console or Console(stderr=True)
        self._num_rounds = num_rounds
        self._bars: Progress | None = None
        self._rounds = TaskID(0)
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._bars = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=32),
                TextColumn("{task.completed:g}/{task.total:g}", markup=False),
                console=self._console,
            )
            self._rounds = self._bars.add_task("rounds", total=num_rounds)

    def __enter__(self) -> Self:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars:
            self._bars.stop()

    def show(self, event: RunEvent) -> None:
        """Shows one event."""
        line, style = describe(event)
        shown = text.printable(line, _LONGEST)
        self._console.print(Text(f"{event.at:%H:%M:%S}  {shown}", style=style), soft_wrap=True)
        if self._bars and event.kind == events.ROUND_FINISHED and event.round:
            self._bars.update(self._rounds, completed=event.round)


def describe(event: RunEvent) -> tuple[str, str]:
    """Returns an event as one line, and its style; one of an unknown kind as it is."""
    body = event.body
    who = f"{event.client_id}: " if event.client_id else ""
    where = f"round {event.round}: " if event.round else ""
    match event.kind:
        case events.STATUS:
            reason = f": {body['reason']}" if body.get("reason") else ""
            return f"{body.get('status')}{reason}", "bold"
        case events.WAITING:
            return f"waiting for clients: {body.get('accepted')} of {body.get('needed')}", "dim"
        case events.ACCEPTED:
            return f"{who}takes part with {body.get('num_examples')} rows", ""
        case events.REFUSED:
            return f"{where}{who}refused ({body.get('code')}): {body.get('message')}", "yellow"
        case events.PLANNED:
            return _planned(body), ""
        case events.ROUND_STARTED:
            return f"{where}{len(_many(body, 'cohort'))} clients are asked", "dim"
        case events.UPDATE:
            spent = body.get("epsilon_spent")
            after = f", ε {text.epsilon(spent)} spent" if isinstance(spent, int | float) else ""
            return f"{where}{who}update{after}", "dim"
        case events.REJECTED:
            return f"{where}{who}update cannot be used ({body.get('code')})", "yellow"
        case events.ROUND_FINISHED:
            return f"{where}{_finished(body)}", ""
        case events.NOTE:
            return f"{where}note: {body.get('message')}", ""
        case events.EXPORTED:
            return f"adapter {body.get('adapter')} exported", "bold"
    return f"{where}{who}{event.kind} {dict(body)}", "dim"


def _planned(body: Mapping[str, Any]) -> str:
    budget = body.get("target_epsilon")
    privacy = f"ε ≤ {text.budget(budget)}" if isinstance(budget, int | float) else "NO PRIVACY"
    return f"{len(_many(body, 'clients'))} clients, {body.get('num_rounds')} rounds, {privacy}"


def _finished(body: Mapping[str, Any]) -> str:
    parts = []
    metrics = body.get("metrics")
    if isinstance(metrics, Mapping):
        parts += [f"{name} {text.metric(name, float(x))}" for name, x in metrics.items()]
    spent = body.get("max_epsilon")
    if isinstance(spent, int | float):
        parts.append(f"largest ε {text.epsilon(spent)}")
    missing = _many(body, "missing")
    if missing:
        parts.append(f"{len(missing)} missing")
    seconds = body.get("seconds")
    if isinstance(seconds, int | float):
        parts.append(text.duration(seconds))
    return ", ".join(parts) or "finished"


def _many(body: Mapping[str, Any], key: str) -> Any:
    found = body.get(key)
    return found if isinstance(found, list | Mapping) else ()
