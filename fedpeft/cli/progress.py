"""What `fedpeft simulate` shows while it runs, and its summary at the end.

On a terminal a live display; anywhere else (a CI log, a pipe) one plain line a round, without
control codes. Client ids and notes are untrusted: they are escaped and never read as markup.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from fedpeft.federated.observer import Observer
from fedpeft.report import text
from fedpeft.report.guarantee import banners, budget_of_max, max_epsilon
from fedpeft.report.schema import Report

NO_PRIVACY = "NO PRIVACY"

_RED = "bold red"
_MAX_ID_LENGTH = 28
_PLAIN = {
    "≤": "<=",
    "ε": "epsilon",
    "δ": "delta",
    "…": "...",
    "\N{MULTIPLICATION SIGN}10": "e",
    **dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-", strict=True)),
}


class SilentProgress(Observer):
    """Shows nothing; for `--quiet`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Nothing to end."""


class SimulationProgress(SilentProgress):
    """Rounds, clients, steps, the last metric and the ε spent so far.

    Args:
        console: Where to show it; standard error by default.
        live: Whether to draw a live display; by default where the console is a terminal that
            can move its cursor, whatever the environment says about colours.
        clock: Seconds that only go forward.
    """

    def __init__(
        self,
        console: Console | None = None,
        *,
        live: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console or Console(stderr=True)
        self._ascii_only = self._console.options.ascii_only
        self._clock = clock
        if live is None:
            live = self._console.file.isatty() and not self._console.is_dumb_terminal
        self._display = _Display(self._console) if live else None
        self._num_rounds = self._first_round = self._round = 0
        self._metric_name, self._metric = "", ""
        self._private = True
        self._target_epsilon: float | None = None
        self._max_epsilon: float | None = None
        self._cohort_size, self._num_finished = 1, 0
        self._steps: dict[str, tuple[int, int]] = {}
        self._started_s = self._round_started_s = clock()

    def __enter__(self) -> Self:
        if self._display:
            self._display.live.start(refresh=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the terminal as it was, with the last state of the bars in it."""
        if self._display:
            self._display.hide_activity()
            self._display.live.stop()

    def run_started(
        self,
        *,
        num_rounds: int,
        first_round: int,
        clients: Sequence[str],
        metric_name: str,
        private: bool,
        target_epsilon: float | None,
    ) -> None:
        """A run begins, or goes on at `first_round`, which counts from 1."""
        self._num_rounds, self._first_round, self._round = num_rounds, first_round, first_round
        self._metric_name, self._private = metric_name, private
        self._target_epsilon = target_epsilon
        self._max_epsilon = None
        self._started_s = self._clock()
        resumed = f", from round {first_round}" if first_round > 1 else ""
        self._say(
            f"{_plural(num_rounds, 'round')}{resumed}, {_plural(len(clients), 'client')}",
            self._goal(),
        )
        self._update()

    def round_started(self, round: int, cohort: Sequence[str]) -> None:  # noqa: A002
        """A round begins with these clients."""
        self._round, self._cohort_size, self._num_finished = round, max(len(cohort), 1), 0
        self._steps.clear()
        self._round_started_s = self._clock()
        if self._display:
            self._display.hide_activity()
        self._update()

    def client_started(self, round: int, client_id: str, num_steps: int) -> None:  # noqa: A002
        """A client begins its local steps."""
        self._steps[client_id] = (0, num_steps)
        self._show_client(client_id)

    def step_finished(self, client_id: str, step: int) -> None:
        """A client did one more local step; steps are counted, `step` itself is not read."""
        done, total = self._steps.get(client_id, (0, 0))
        self._steps[client_id] = (min(done + 1, total), total)
        self._show_client(client_id)

    def client_finished(
        self,
        round: int,  # noqa: A002
        client_id: str,
        epsilon: float | None,
    ) -> None:
        """A client is done for this round and has spent `epsilon` in all."""
        self._steps.pop(client_id, None)
        self._num_finished += 1
        self._spent(epsilon)
        self._update()

    def evaluation_started(self, num_examples: int) -> None:
        """An evaluation on so many examples begins."""
        if self._display:
            self._display.show_activity("evaluation", 0, num_examples, "examples")

    def evaluation_advanced(self, num_examples: int) -> None:
        """So many more examples are evaluated."""
        if self._display:
            self._display.advance(num_examples)

    def round_finished(
        self,
        round: int,  # noqa: A002
        metrics: Mapping[str, float] | None,
        max_epsilon: float | None,
    ) -> None:
        """A round is done; `metrics` is None where it was not evaluated."""
        shown = ""
        if metrics is not None and self._metric_name in metrics:
            shown = self._metric_text(metrics[self._metric_name])
            self._metric = f"{shown} (round {round})"
        self._spent(max_epsilon)
        self._round, self._num_finished = round, self._cohort_size
        self._steps.clear()
        if self._display:
            self._display.hide_activity()
        else:
            width = len(str(self._num_rounds))
            seconds = text.duration(self._clock() - self._round_started_s)
            self._say(
                f"round {round:{width}d}/{self._num_rounds}", shown, self._privacy_text(), seconds
            )
        self._update()

    def note(self, message: str) -> None:
        """Something that a reader should know."""
        line = f"note: {text.printable(message)}"
        self._console.print(Text(_fit(line, self._ascii_only)), soft_wrap=True)

    def _spent(self, epsilon: float | None) -> None:
        if epsilon is not None:
            self._max_epsilon = max(epsilon, self._max_epsilon or 0.0)

    def _say(self, *parts: str) -> None:
        """One plain line; only where there is no live display."""
        if not self._display:
            line = _fit("  ".join(part for part in parts if part), self._ascii_only)
            self._console.print(Text(line), soft_wrap=True)

    def _metric_text(self, value: float) -> str:
        return f"{self._metric_name.replace('_', ' ')} {text.metric(self._metric_name, value)}"

    def _goal(self) -> str:
        if not self._private:
            return f"{NO_PRIVACY}: no guarantee is given"
        if self._target_epsilon is None:
            return "private, without a target ε"
        return f"budget ε = {text.budget(self._target_epsilon)} for each client"

    def _privacy_text(self) -> str:
        if not self._private:
            return NO_PRIVACY
        if self._max_epsilon is None:
            return ""
        of = "" if self._target_epsilon is None else f" / {text.budget(self._target_epsilon)}"
        return f"ε ≤ {text.epsilon(self._max_epsilon)}{of}"

    def _show_client(self, client_id: str) -> None:
        if not self._display:
            return
        done, total = self._steps[client_id]
        place = min(self._num_finished + len(self._steps), self._cohort_size)
        name = text.printable(client_id, _MAX_ID_LENGTH)
        self._display.show_activity(
            f"{name} ({place} of {self._cohort_size})", done, total, "steps"
        )
        self._update()

    def _update(self) -> None:
        if not self._display:
            return
        running = sum(done / total for done, total in self._steps.values() if total)
        fraction = min((self._num_finished + running) / self._cohort_size, 1.0)
        completed = self._round - 1 + fraction
        here = completed - (self._first_round - 1)
        elapsed_s = self._clock() - self._started_s
        left = ""
        if here > 0 and completed < self._num_rounds:
            left = f"{text.duration(elapsed_s / here * (self._num_rounds - completed))} left"
        status = Text("  ")
        privacy = _fit(self._privacy_text(), self._ascii_only)
        status.append(self._metric + ("   " if self._metric and privacy else ""))
        status.append(privacy, style="" if self._private else _RED)
        self._display.show_rounds(
            self._round, completed, self._num_rounds, text.duration(elapsed_s), left, status
        )


class _Display:
    """The live display: a bar of rounds, a bar of what is going on, a line of results."""

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=32, complete_style="cyan", finished_style="green"),
            TextColumn("{task.fields[detail]}", markup=False),
        )
        self._bars = Progress(*columns, console=console, auto_refresh=False)
        self._status = Text("")
        self._ascii_only = console.options.ascii_only
        self._rounds: TaskID = self._bars.add_task("Starting", total=None, detail="")
        self._activity: TaskID = self._bars.add_task("", total=None, detail="", visible=False)
        self._unit = ""
        self.live = Live(
            get_renderable=self._renderable, console=console, refresh_per_second=8, transient=False
        )

    def show_rounds(
        self, number: int, completed: float, total: int, elapsed: str, left: str, status: Text
    ) -> None:
        detail = ", ".join(part for part in (elapsed, left) if part)
        self._bars.update(
            self._rounds,
            description=f"Round {number}/{total}",
            completed=completed,
            total=total,
            detail=detail,
        )
        self._status = status

    def show_activity(self, description: str, done: int, total: int, unit: str) -> None:
        self._unit = unit
        self._bars.update(
            self._activity,
            description=_fit(f"  {description}", self._ascii_only),
            completed=done,
            total=total,
            visible=True,
            detail=f"{done:,}/{total:,} {unit}",
        )

    def advance(self, count: int) -> None:
        task = next(task for task in self._bars.tasks if task.id == self._activity)
        total = int(task.total or 0)
        done = min(int(task.completed) + count, total)
        self._bars.update(self._activity, completed=done, detail=f"{done:,}/{total:,} {self._unit}")

    def hide_activity(self) -> None:
        self._bars.update(self._activity, visible=False)

    def _renderable(self) -> RenderableType:
        return Group(self._bars.get_renderable(), self._status)


def summary(report: Report, *, ascii_only: bool = False) -> Table:
    """The run in a few lines, for the end of `fedpeft simulate`.

    Args:
        report: The run.
        ascii_only: For a console that can write nothing else (`console.options.ascii_only`).

    Returns:
        Something that `Console.print` shows; red where there is no sound guarantee.
    """
    table = Table.grid(padding=(0, 3))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for title, value, style in _summary_rows(report):
        table.add_row(
            Text(_fit(text.printable(title), ascii_only), style=style or "dim"),
            Text(_fit(text.printable(value), ascii_only), style=style),
        )
    return table


def _summary_rows(report: Report) -> Iterator[tuple[str, str, str]]:
    """Title, value and style of each line."""
    evaluation, privacy, highest = report.evaluation, report.privacy, max_epsilon(report)
    for banner in banners(report):
        yield "privacy", banner.headline, _RED
    if privacy.enabled:
        spent = "unknown" if highest is None else text.epsilon(highest)
        goal, delta = budget_of_max(report), privacy.delta
        of = "" if goal is None else f" / {text.budget(goal)}"
        at = "" if delta is None else f" at δ = {text.delta(delta)}"
        yield "largest ε", f"{spent}{of}{at}, for one example of one client", ""
    for name, value in evaluation.metrics.items():
        first = evaluation.initial_metrics.get(name)
        start = "" if first is None else f", from {text.metric(name, first)}"
        majority = evaluation.majority_accuracy if name == "accuracy" else None
        beside = "" if majority is None else f", majority class {text.percent(majority)}"
        yield name.replace("_", " "), f"{text.metric(name, value)}{start}{beside}", ""
    clients, rounds = _plural(len(report.clients), "client"), _plural(len(report.rounds), "round")
    yield "run", f"{clients}, {rounds}, {text.duration(report.seconds.total)}", ""
    yield "adapter", report.adapter.digest, ""
    gap = text.number(report.reload.max_abs_difference)
    yield "loaded again", f"largest gap to the run's own metrics {gap}", ""
    for note in report.notes:
        yield "note", note, ""


def _plural(count: int, noun: str) -> str:
    return f"{text.count(count)} {noun}{'' if count == 1 else 's'}"


def _fit(line: str, ascii_only: bool) -> str:
    """The line in what the console's encoding can write."""
    if not ascii_only:
        return line
    for nice, plain in _PLAIN.items():
        line = line.replace(nice, plain)
    return line.encode("ascii", "backslashreplace").decode("ascii")
