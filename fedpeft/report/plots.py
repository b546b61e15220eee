"""The figures of a report, each as one `<svg>` element; None where there is nothing to show.

Functions take a whole `Report` and keep no global state. Beyond 8 clients a line for each would
be a tangle: they turn pale, and the median and the largest stand out.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from fedpeft.report import text
from fedpeft.report._partition import ROWS, partition_figure
from fedpeft.report._svg import (
    INK,
    MUTED,
    SERIES,
    fit_rounds,
    house_style,
    inline_svg,
    new_figure,
    save_figure,
)
from fedpeft.report.schema import Report

__all__ = [
    "ROWS",
    "bytes_svg",
    "diagnostics_svgs",
    "epsilon_svg",
    "metric_svg",
    "partition_figure",
    "partition_svg",
    "save_figure",
    "update_norms_svg",
]

_SIZE_PX = (510, 300)
_MAX_NAMED_CLIENTS = len(SERIES)
_MAX_MARKED_ROUNDS = 40
_MAX_DIAGNOSTICS = 6
_MARKERS = "osD^vPX*"


def metric_svg(report: Report, name: str) -> str | None:
    """One held-out metric by round; round 0 is the score before training.

    Accuracies are percentages, with the majority class as a line where the report has it. A
    perplexity that falls by more than a factor of 50 gets a logarithmic axis.

    Args:
        report: The run.
        name: Key of the metric, for example "accuracy", "loss" or "perplexity".

    Returns:
        The figure; None if no round and no initial score has this metric.
    """
    points = {r.round: r.metrics[name] for r in report.rounds if r.metrics and name in r.metrics}
    if name in report.evaluation.initial_metrics:
        points = {0: report.evaluation.initial_metrics[name], **points}
    if not points:
        return None
    is_share = name.endswith("accuracy")
    scale = 100 if is_share else 1
    rounds, values = list(points), np.array(list(points.values()), dtype=float) * scale
    majority = report.evaluation.majority_accuracy if name == "accuracy" else None
    with house_style():
        figure, ax = _axes()
        _line(ax, rounds, values, SERIES[0])
        fit_rounds(ax, 0, max(_last_round(report), max(rounds)))
        finite = values[np.isfinite(values)]
        if is_share:
            ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
        steep = finite.size and finite.min() > 0 and finite.max() > 50 * finite.min()
        if steep and not is_share:
            ax.set_yscale("log")
            ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
            ax.yaxis.set_minor_formatter(NullFormatter())
        title = name.replace("_", " ").capitalize()
        unit = " (nats)" if name == "loss" else ""
        ax.set_title(f"Held-out {title.lower()}{unit}")
        if majority is not None:
            ax.axhline(majority * 100, color=MUTED, linestyle=(0, (5, 3)), linewidth=1.3)
            _legend(
                figure,
                [Line2D([], [], color=MUTED, linestyle=(0, (5, 3)), linewidth=1.3)],
                [f"majority class {text.percent(majority)}"],
            )
        _room(ax, [*finite, *([majority * 100] if majority is not None else [])], is_share)
        return inline_svg(figure, f"metric-{name}", f"{title} by round")


def epsilon_svg(report: Report) -> str | None:
    """ε spent by each client after each round, with the budget as a line; None if not private."""
    series = _by_client(report, lambda r: r.epsilon)
    if not report.privacy.enabled or not series:
        return None
    series = {client: _carried(points, report) for client, points in series.items()}
    target = report.privacy.target_epsilon
    with house_style():
        figure, ax = _axes()
        handles, labels = _client_lines(ax, series, joined=True)
        if target is not None:
            style = Line2D([], [], color=INK, linestyle=(0, (5, 3)), linewidth=1.3)
            ax.axhline(target, color=INK, linestyle=(0, (5, 3)), linewidth=1.3)
            handles, labels = [style, *handles], [f"budget {text.budget(target)}", *labels]
        fit_rounds(ax, 0, _last_round(report))
        highest = max(value for points in series.values() for value in points.values())
        ax.set_ylim(0, 1.08 * max(highest, target or 0.0, 1e-6))
        spent_at = f" at δ = {text.delta(report.privacy.delta)}" if report.privacy.delta else ""
        ax.set_title(f"ε spent by client{spent_at}")
        _legend(figure, handles, labels)
        return inline_svg(figure, "epsilon", "Epsilon spent by each client after each round")


def update_norms_svg(report: Report) -> str | None:
    """L2 norm of each client's update by round; None if no round has one."""
    series = _by_client(report, lambda r: r.update_norms)
    if not series:
        return None
    with house_style():
        figure, ax = _axes()
        handles, labels = _client_lines(ax, series, joined=False)
        fit_rounds(ax, _first_round(report), _last_round(report))
        highest = max(value for points in series.values() for value in points.values())
        ax.set_ylim(0, 1.08 * highest if np.isfinite(highest) and highest > 0 else 1)
        ax.set_title("Update norm by client (L2)")
        _legend(figure, handles, labels)
        return inline_svg(figure, "update-norms", "Norm of each client's update by round")


def partition_svg(report: Report) -> str:
    """Rows by client and label, or by client alone where the task has no labels."""
    labelled = any(client.label_counts for client in report.clients)
    histogram: dict[str, Mapping[str, int]] = {
        c.client_id: c.label_counts if labelled else {ROWS: c.num_examples} for c in report.clients
    }
    figure = partition_figure(histogram, "")
    return inline_svg(figure, "partition", "Training rows by client and label")


def diagnostics_svgs(report: Report) -> list[str]:
    """What the aggregator says of each round, one figure a name; the first six by name."""
    names = sorted({name for r in report.rounds for name in r.diagnostics})[:_MAX_DIAGNOSTICS]
    figures = []
    for index, name in enumerate(names):
        points = {r.round: r.diagnostics[name] for r in report.rounds if name in r.diagnostics}
        with house_style():
            figure, ax = _axes()
            _line(ax, list(points), np.array(list(points.values()), dtype=float), SERIES[0])
            fit_rounds(ax, _first_round(report), _last_round(report))
            _room(ax, list(points.values()), is_share=False)
            title = text.printable(name.replace("_", " "), 48)
            ax.set_title(f"Aggregator: {title}")
            figures.append(inline_svg(figure, f"diagnostic-{index}", f"{title} by round"))
    return figures


def bytes_svg(report: Report) -> str | None:
    """Tensor bytes of each round in both directions, stacked; None if there is no round."""
    if not report.rounds:
        return None
    rounds = np.array([r.round for r in report.rounds])
    down = np.array([r.downlink_bytes for r in report.rounds], dtype=float)
    up = np.array([r.uplink_bytes for r in report.rounds], dtype=float)
    scale, unit = text.size_unit(float((down + up).max()))
    gap, edge = (0.3, 0.0) if len(rounds) <= _MAX_MARKED_ROUNDS else (0.0, 0.6)
    with house_style():
        figure, ax = _axes()
        width = 1 - gap
        blue, amber = SERIES[0], SERIES[4]
        ax.bar(rounds, down / scale, width, fc=blue, ec=blue, linewidth=edge)
        ax.bar(rounds, up / scale, width, bottom=down / scale, fc=amber, ec=amber, linewidth=edge)
        fit_rounds(ax, int(rounds[0]), int(rounds[-1]))
        ax.set_ylim(0, 1.08 * max(float((down + up).max()) / scale, 1e-9))
        ax.set_title(f"Tensor bytes sent by round ({unit})")
        _legend(
            figure,
            [Patch(color=amber), Patch(color=blue)],
            ["clients to server", "server to clients"],
        )
        return inline_svg(figure, "bytes", "Bytes sent by round in both directions")


def _axes() -> tuple[Figure, Axes]:
    figure = new_figure(*_SIZE_PX)
    ax = figure.add_subplot()
    ax.yaxis.set_major_locator(_nice_ticks())
    return figure, ax


def _nice_ticks() -> MaxNLocator:
    return MaxNLocator(6, steps=[1, 2, 2.5, 5, 10])


def _line(ax: Axes, rounds: Sequence[int], values: np.ndarray, colour: str) -> None:
    marker = "o" if len(rounds) <= _MAX_MARKED_ROUNDS else None
    ax.plot(rounds, values, color=colour, marker=marker)


def _client_lines(
    ax: Axes, series: Mapping[str, Mapping[int, float]], *, joined: bool
) -> tuple[list[Line2D], list[str]]:
    """Draw every client; the legend's handles and labels, highest last value first."""
    few_rounds = max(len(points) for points in series.values()) <= _MAX_MARKED_ROUNDS
    if len(series) <= _MAX_NAMED_CLIENTS:
        styles = dict(zip(series, zip(SERIES, _MARKERS, strict=True), strict=False))
        handles: dict[str, Line2D] = {}
        for client, points in series.items():
            colour, marker = styles[client]
            shape = marker if few_rounds else None
            (handles[client],) = ax.plot(
                list(points), list(points.values()), color=colour, marker=shape, linewidth=1.5
            )
        ranked = sorted(series, key=lambda client: -series[client][max(series[client])])
        return [handles[c] for c in ranked], [text.printable(c, 18) for c in ranked]

    for points in series.values():
        ax.plot(
            list(points),
            list(points.values()),
            color=SERIES[5],
            alpha=0.5,
            linewidth=0.8,
            linestyle="-" if joined else "none",
            marker=None if joined else "o",
            markersize=3,
            markeredgewidth=0,
        )
    rounds = sorted({number for points in series.values() for number in points})
    values = [[points[r] for points in series.values() if r in points] for r in rounds]
    mark = "o" if few_rounds else None
    (top,) = ax.plot(rounds, [max(v) for v in values], color=SERIES[1], marker=mark)
    (middle,) = ax.plot(rounds, [float(np.median(v)) for v in values], color=SERIES[0], marker=mark)
    pale = Line2D(
        [],
        [],
        color=SERIES[5],
        linewidth=0.8,
        linestyle="-" if joined else "none",
        marker=None if joined else "o",
        markersize=3,
    )
    return [top, middle, pale], ["largest", "median", f"each of {len(series)}"]


def _legend(figure: Figure, handles: Sequence[Artist], labels: Sequence[str]) -> None:
    """A legend under the axes, outside of the data."""
    # Placeholders first: matplotlib drops a legend entry that begins with "_".
    legend = figure.legend(
        handles,
        ["·"] * len(labels),
        loc="outside lower left",
        ncols=3,
        columnspacing=1.4,
    )
    for entry, label in zip(legend.get_texts(), labels, strict=True):
        entry.set_text(label)


def _room(ax: Axes, values: Sequence[float], is_share: bool) -> None:
    """Limits with air above and below; a constant series is not blown up to fill the plot."""
    finite = [value for value in values if np.isfinite(value)]
    if not finite or ax.get_yscale() == "log":
        return
    low, high = min(finite), max(finite)
    span = max(high - low, 2.0 if is_share else 0.02 * abs(high), 1e-9)
    bottom, top = low - 0.1 * span, high + 0.1 * span
    if low >= 0:
        bottom = max(bottom, 0.0) if low > 0.4 * high else 0.0
    if is_share:
        top = min(top, 100.5)
    ax.set_ylim(bottom, top)


def _by_client(
    report: Report, of: Callable[..., Mapping[str, float]]
) -> dict[str, dict[int, float]]:
    """Points by client in the report's order; clients that are never mentioned are left out."""
    order = [c.client_id for c in report.clients]
    others = sorted({c for r in report.rounds for c in of(r)} - set(order))
    lines = {c: {r.round: of(r)[c] for r in report.rounds if c in of(r)} for c in order + others}
    return {client: points for client, points in lines.items() if points}


def _carried(points: Mapping[int, float], report: Report) -> dict[int, float]:
    """ε after every round from 0 on: a client that sits a round out keeps what it spent."""
    carried = {0: 0.0}
    for entry in report.rounds:
        carried[entry.round] = points.get(entry.round, list(carried.values())[-1])
    return carried


def _first_round(report: Report) -> int:
    return report.rounds[0].round if report.rounds else 1


def _last_round(report: Report) -> int:
    return report.rounds[-1].round if report.rounds else 1
