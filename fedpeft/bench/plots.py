"""The figure of a benchmark: every ratio as a point with its interval, and the targets."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fedpeft.bench.schema import BenchReport, RatioReport
from fedpeft.report import text
from fedpeft.report._svg import INK, MUTED, SERIES, house_style, new_figure

_WIDTH_PX = 760
_ROW_PX, _MARGIN_PX = 24, 90
_QUANTITIES = {
    "seconds": "time",
    "cpu_seconds": "processor time",
    "peak_memory": "memory",
    "step_memory": "memory of the step alone",
}
_COLOURS = dict(zip(_QUANTITIES, (SERIES[0], SERIES[5], SERIES[1], SERIES[4]), strict=True))
# A ratio of arms that differ by more than this would squeeze those around 1 together.
_MAX_LINEAR = 4.0


def ratios_figure(report: BenchReport) -> Figure:
    """Returns the figure: one row a ratio, 1 as a line, targets as short strokes."""
    rows = [(case.name, ratio) for case in report.cases for ratio in case.ratios]
    with house_style():
        figure = new_figure(_WIDTH_PX, _MARGIN_PX + _ROW_PX * max(len(rows), 2))
        ax = figure.add_subplot()
        for place, (_, ratio) in enumerate(rows):
            colour = _COLOURS[ratio.quantity]
            if ratio.low is not None and ratio.high is not None:
                ax.plot([ratio.low, ratio.high], [place, place], color=colour, linewidth=2.4)
            ax.plot([ratio.median], [place], "o", color=colour)
            if ratio.at_most is not None:
                ax.plot([ratio.at_most], [place], "|", color=INK, markersize=16, mew=1.6)
        ax.axvline(1, color=MUTED, linestyle=(0, (5, 3)), linewidth=1.1)
        ax.set_yticks(range(len(rows)), labels=[_label(case, ratio) for case, ratio in rows])
        ax.invert_yaxis()
        ax.grid(visible=False, axis="y")
        ends = [end for _, r in rows for end in (r.median, r.high or r.median)]
        if max(ends, default=1.0) > _MAX_LINEAR:
            ax.set_xscale("log")
            ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.set_xlabel("Ratio (dashed: equal; stroke: at most)")
        ax.set_title(f"fedpeft bench {report.benchmark}")
        _legend(figure, [ratio for _, ratio in rows])
        return figure


def _label(case: str, ratio: RatioReport) -> str:
    arms = f"{ratio.numerator} / {ratio.denominator}"
    return text.printable(f"{case}: {arms}", 60)


def _legend(figure: Figure, ratios: Sequence[RatioReport]) -> None:
    shown = [quantity for quantity in _QUANTITIES if any(r.quantity == quantity for r in ratios)]
    handles = [Line2D([], [], color=_COLOURS[q], marker="o", linewidth=2.4) for q in shown]
    labels = [_QUANTITIES[quantity] for quantity in shown]
    figure.legend(handles, labels, loc="outside lower left", ncols=4)
