"""What `fedpeft removal` shows: a request, its plan, and what happens to it.

What comes from a server is untrusted: it is escaped and never read as markup.
"""

from collections.abc import Mapping
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from fedpeft.cli.remote_options import as_json, moment
from fedpeft.remote.removal_records import Removal, RemovalEvent
from fedpeft.report import text
from fedpeft.unlearning.plan import RemovalPlan
from fedpeft_server.removals import events

_LONGEST = 300
_GUARANTEES = {
    "none": "the adapter has none",
    "charged": "kept; charged for",
    "void": "VOID after the job",
}


def removal_json(removal: Removal) -> dict[str, Any]:
    """Returns a request as what JSON can say."""
    content = asdict(removal) | {"plan": removal.plan.to_body()}
    del content["job_public_key"]
    read: dict[str, Any] = as_json(content)
    return read


def show_removal(removal: Removal) -> None:
    """Prints a request and where it stands."""
    order, plan = removal.order, removal.plan
    state = f"{removal.state}{f': {removal.reason}' if removal.reason else ''}"
    if not removal.state.has_ended and removal.progress:
        state += f", {text.percent(removal.progress)}"
    _print_rows(
        [
            ("removal", removal.request_id),
            ("state", state),
            ("records", f"{text.count(order.num_records)} of {order.client_id}"),
            ("method", f"{order.method} at the {order.place} ({plan.claim})"),
            ("adapter", plan.adapter),
            ("successor", removal.successor),
            ("aliases", ", ".join(plan.aliases)),
            ("requested", f"{moment(removal.created_at)} UTC by {removal.requested_by}"),
            ("deadline", f"{moment(order.deadline)} UTC" if order.deadline else ""),
        ]
    )


def show_plan(plan: RemovalPlan) -> None:
    """Prints what a request would do."""
    _print_rows(
        [
            ("adapter", plan.adapter),
            ("method", f"{plan.method} ({plan.claim})"),
            ("withdraws", f"{len(plan.affected)} versions"),
            *(("", digest) for digest in plan.affected),
            ("moves", ", ".join(plan.aliases) or "no alias"),
            ("clean", plan.clean_ancestor or "no version without these rows"),
            ("guarantee", _GUARANTEES[plan.guarantee]),
            *(("note", note) for note in plan.notes),
        ]
    )


class RemovalView:
    """Shows the events of one request: a line each, and on a terminal a bar of the job."""

    def __init__(self, console: Console | None = None) -> None:
        """Takes where to show them; standard error by default."""
        self._console = console or Console(stderr=True)
        self._bars: Progress | None = None
        self._job = TaskID(0)
        self._told: tuple[object, int] | None = None
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._bars = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=32),
                TextColumn("{task.percentage:>3.0f} %", markup=False),
                console=self._console,
            )
            self._job = self._bars.add_task("waiting", total=1.0)

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

    def show(self, event: RemovalEvent) -> None:
        """Shows one event; progress moves the bar, where there is one."""
        if self._bars and event.kind == events.PROGRESS:
            share = event.body.get("share")
            phase = text.printable(str(event.body.get("phase")), 24)
            if isinstance(share, int | float):
                self._bars.update(self._job, completed=float(share), description=phase)
            return
        if event.kind == events.PROGRESS and not self._is_news(event.body):
            return
        line, style = describe(event)
        shown = text.printable(line, _LONGEST)
        self._console.print(Text(f"{event.at:%H:%M:%S}  {shown}", style=style), soft_wrap=True)

    def _is_news(self, body: Mapping[str, Any]) -> bool:
        """In a log a line for each phase, and for each tenth of the whole, is enough."""
        share = body.get("share")
        tenths = int(10 * share) if isinstance(share, int | float) else 0
        before, self._told = self._told, (body.get("phase"), tenths)
        return self._told != before


def describe(event: RemovalEvent) -> tuple[str, str]:
    """Returns an event as one line, and its style; one of an unknown kind as it is."""
    body = event.body
    match event.kind:
        case events.STATE:
            reason = f": {body['reason']}" if body.get("reason") else ""
            return f"{body.get('state')}{reason}", "bold"
        case events.RECORDS:
            return f"the sealed records came, {body.get('size_bytes')} bytes", "dim"
        case events.ATTEMPT:
            return f"the job begins: {body.get('number')} of {body.get('max_attempts')}", ""
        case events.PROGRESS:
            return f"{body.get('phase')} {_share(body)}", "dim"
        case events.LOST:
            return f"it begins again: {body.get('what')}", "yellow"
        case events.GATE:
            return _gate(body), "" if body.get("passed") else "yellow"
        case events.PUBLISHED:
            names = ", ".join(map(str, _many(body, "aliases"))) or "no alias"
            withdrawn = len(_many(body, "withdrawn"))
            return f"adapter {body.get('adapter')}: {names}; {withdrawn} withdrawn", "bold"
        case events.CONFIRMED:
            replicas = len(_many(body, "replicas"))
            return f"served by {replicas} replicas" if replicas else "nobody serves it now", ""
        case events.UNCONFIRMED:
            return _unconfirmed(body), "yellow"
        case events.LATE:
            return f"the deadline has passed ({body.get('deadline')})", "yellow"
        case events.NOTE:
            return f"note: {body.get('message')}", ""
    return f"{event.kind} {dict(body)}", "dim"


def _gate(body: Mapping[str, Any]) -> str:
    by = f", measured by the {body['measured_by']}" if body.get("measured_by") else ""
    if body.get("passed"):
        return f"the gate is passed{by}"
    return f"the gate is not passed{by}: {'; '.join(map(str, _many(body, 'reasons')))}"


def _unconfirmed(body: Mapping[str, Any]) -> str:
    problems = [
        f"{entry.get('replica')}: {entry.get('problem')}" if isinstance(entry, Mapping) else "?"
        for entry in _many(body, "replicas")
    ]
    return f"not served by every replica: {'; '.join(problems)}"


def _share(body: Mapping[str, Any]) -> str:
    share = body.get("share")
    return text.percent(float(share)) if isinstance(share, int | float) else ""


def _many(body: Mapping[str, Any], key: str) -> Any:
    found = body.get(key)
    return found if isinstance(found, list | Mapping) else ()


def _print_rows(rows: list[tuple[str, str]]) -> None:
    for title, value in rows:
        if value:
            typer.echo(f"{title:10s} {text.printable(value)}")
