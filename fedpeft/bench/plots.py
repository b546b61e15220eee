"""The figure of a benchmark: every ratio as a point with its interval, and the targets."""

from collections.abc import Collection, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from fedpeft.bench.schema import BenchReport, RatioReport
from fedpeft.report import text
from fedpeft.report._svg import INK, MUTED, SERIES, house_style, new_figure

_WIDTH_PX = 760
_ROW_PX, _MARGIN_PX = 40, 100
_MAX_LABEL = 60
# Quantity → legend, colour, and place within the row of its pair of arms.
_QUANTITIES = {
    "seconds": ("time", SERIES[0], -0.24),
    "peak_memory": ("memory", SERIES[1], 0.0),
    "step_memory": ("memory of the step alone", SERIES[4], 0.24),
    "wire_bytes": ("bytes on the wire", SERIES[2], 0.0),
}
# On a linear axis, arms that differ by more would squeeze those around 1 together.
_MAX_LINEAR = 4.0


def ratios_figure(report: BenchReport) -> Figure:
    """Returns the figure: one row a pair of arms, 1 as a line, targets as strokes.

    Processor time is left out; the table has it.
    """
    shown = [
        (f"{case.name}: {ratio.numerator} / {ratio.denominator}", ratio)
        for case in report.cases
        for ratio in case.ratios
        if ratio.quantity in _QUANTITIES
    ]
    labels = list(dict.fromkeys(label for label, _ in shown))
    with house_style():
        figure = new_figure(_WIDTH_PX, _MARGIN_PX + _ROW_PX * max(len(labels), 2))
        ax = figure.add_subplot()
        for label, ratio in shown:
            _draw(ax, labels.index(label), ratio)
        ax.axvline(1, color=MUTED, linestyle=(0, (5, 3)), linewidth=1.1)
        ax.set_yticks(
            range(len(labels)), labels=[text.printable(label, _MAX_LABEL) for label in labels]
        )
        ax.set_ylim(len(labels) - 0.4, -0.6)
        ax.grid(visible=False, axis="y")
        _scale(ax, [ratio for _, ratio in shown])
        ax.set_xlabel("Ratio (dashed: equal; stroke: target, at most)")
        ax.set_title(f"fedpeft bench {report.benchmark}")
        _legend(figure, {ratio.quantity for _, ratio in shown})
        return figure


def _draw(ax: Axes, row: int, ratio: RatioReport) -> None:
    _, colour, offset = _QUANTITIES[ratio.quantity]
    place = row + offset
    if ratio.low is not None and ratio.high is not None:
        ax.plot([ratio.low, ratio.high], [place, place], color=colour, linewidth=2.4)
    ax.plot([ratio.median], [place], "o", color=colour)
    if ratio.at_most is not None:
        ax.plot([ratio.at_most], [place], "|", color=INK, markersize=9, markeredgewidth=1.6)


def _scale(ax: Axes, ratios: Sequence[RatioReport]) -> None:
    ends = [end for r in ratios for end in (r.median, r.low, r.high) if end is not None]
    if not ends or (max(ends) <= _MAX_LINEAR and min(ends) >= 1 / _MAX_LINEAR):
        return
    ax.set_xscale("log")
    is_wide = max(ends) > 100 * min(ends)
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0,) if is_wide else (1.0, 2.0, 5.0)))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.xaxis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, quantities: Collection[str]) -> None:
    shown = [style for quantity, style in _QUANTITIES.items() if quantity in quantities]
    handles = [Line2D([], [], color=colour, marker="o", linewidth=2.4) for _, colour, _ in shown]
    figure.legend(handles, [name for name, _, _ in shown], loc="outside lower left", ncols=3)
