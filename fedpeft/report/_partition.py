"""Who holds which rows, as one figure that stays readable from 2 to 150 labels."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fedpeft.report import text
from fedpeft.report._svg import GRID, INK, MUTED, SERIES, house_style, new_figure

ROWS = "rows"
"""The one "label" of data that has none."""

WIDTH_PX = 1040
_MAX_STACKED = len(SERIES)
_BLUES = LinearSegmentedColormap.from_list("blues", ["#dcebf7", "#6aaed6", "#1f6fae", "#08306b"])


def partition_figure(histogram: Mapping[str, Mapping[str, int]], title: str) -> Figure:
    """Rows by client and label.

    Up to 8 labels are stacked bars of rows. More are a heat map of each client's label shares,
    with a bar of its rows beside it. A single label is a plain bar chart.

    Args:
        histogram: Rows by client id, then by label, in the order to show the clients in. For
            data without labels give each client the one label `ROWS`.
        title: Shown over the figure; empty for none.

    Returns:
        A figure for `save_figure`; its height grows with the number of clients.

    Raises:
        ValueError: There is no client.
    """
    if not histogram:
        raise ValueError("expected at least one client in the histogram, got none")
    labels = sorted({label for row in histogram.values() for label in row}, key=_natural)
    counts_CL = np.array([[row.get(label, 0) for label in labels] for row in histogram.values()])
    counts_CL = counts_CL.reshape(len(histogram), len(labels))
    names = [text.printable(client, 24) for client in histogram]
    with house_style():
        if len(labels) <= _MAX_STACKED:
            figure = _stacked(names, labels, counts_CL)
        else:
            figure = _heat_map(names, labels, counts_CL)
        if title:
            figure.suptitle(
                text.printable(title, 100), x=0.01, ha="left", fontsize=13, fontweight="bold"
            )
    return figure


def _stacked(names: list[str], labels: list[str], counts_CL: np.ndarray) -> Figure:
    pitch = _pitch_px(len(names))
    figure = new_figure(WIDTH_PX, 90 + pitch * len(names) + (24 if len(labels) > 1 else 0))
    ax = figure.add_subplot()
    y, left = np.arange(len(names)), np.zeros(len(names))
    handles = []
    for column, colour in zip(range(len(labels)), SERIES, strict=False):
        width = counts_CL[:, column]
        ax.barh(y, width, left=left, height=0.72, fc=colour, ec="white", linewidth=0.4)
        handles.append(Patch(color=colour))
        left = left + width
    if len(labels) > 1:
        # Placeholders first: matplotlib drops a legend entry that begins with "_".
        legend = figure.legend(
            handles, ["·"] * len(labels), loc="outside upper left", ncols=min(len(labels), 8)
        )
        for entry, label in zip(legend.get_texts(), labels, strict=True):
            entry.set_text(text.printable(label, 18))
    _client_axis(ax, names, pitch)
    _count_axis(ax)
    unit = "Rows"
    if len(labels) == 1 and labels[0] != ROWS:
        unit = f"Rows, all with the label {text.printable(labels[0], 24)}"
    ax.set_xlabel(unit)
    return figure


def _heat_map(names: list[str], labels: list[str], counts_CL: np.ndarray) -> Figure:
    pitch = _pitch_px(len(names))
    rows_C = counts_CL.sum(axis=1)
    share_CL = 100 * counts_CL / np.maximum(rows_C, 1)[:, None]
    figure = new_figure(WIDTH_PX, 190 + max(pitch * len(names), 60))
    ax, bars = figure.subplots(1, 2, width_ratios=[6, 1], sharey=True)
    image = ax.imshow(
        np.ma.masked_equal(share_CL, 0),
        aspect="auto",
        cmap=_BLUES,
        vmin=0,
        vmax=float(share_CL.max()) or 1.0,
        interpolation="none",
    )
    every = max(1, -(-len(labels) // 56))
    ax.set_xticks(
        range(0, len(labels), every),
        labels=[text.printable(label, 16) for label in labels[::every]],
        rotation=90 if any(len(label) > 2 for label in labels) else 0,
        fontsize=9,
    )
    ax.set_xlabel("Label" if every == 1 else f"Label (one of {every} is named)")
    _client_axis(ax, names, pitch)
    ax.grid(visible=False)
    _frame(ax)
    bars.barh(np.arange(len(names)), rows_C, height=0.72, color=MUTED)
    bars.tick_params(labelleft=False)
    bars.grid(visible=False, axis="y")
    _count_axis(bars, max_ticks=3)
    bars.set_xlabel("Rows")
    colorbar = figure.colorbar(image, ax=[ax, bars], location="top", aspect=70, pad=0.02, shrink=1)
    colorbar.outline.set_visible(False)
    colorbar.ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f} %"))
    colorbar.set_label("Share of the client's own rows (blank: none)", loc="left", color=INK)
    return figure


def _client_axis(ax: Axes, names: Sequence[str], pitch_px: float) -> None:
    """First client on top; where rows are too thin for every name, one in a few has its name."""
    every = max(1, int(-(-11 // pitch_px)))
    ax.set_yticks(
        range(0, len(names), every),
        labels=list(names[::every]),
        color=INK,
        fontsize=10 if pitch_px >= 13 else 9,
    )
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.grid(visible=False, axis="y")


def _count_axis(ax: Axes, max_ticks: int = 8) -> None:
    ax.set_xlim(left=0)
    ax.xaxis.set_major_locator(MaxNLocator(max_ticks, integer=True, steps=[1, 2, 5, 10]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _frame(ax: Axes) -> None:
    for spine in ax.spines.values():
        spine.set(visible=True, color=GRID)


def _pitch_px(num_clients: int) -> float:
    return 26 if num_clients <= 12 else 18 if num_clients <= 30 else 12 if num_clients <= 80 else 6


def _natural(label: str) -> list[tuple[int, int, str]]:
    """Sort key that puts "label 9" before "label 10"."""
    parts = re.split(r"([0-9]+)", label)
    return [(0, int(p), "") if p.isascii() and p.isdigit() else (1, 0, p) for p in parts if p]
