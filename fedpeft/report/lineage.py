"""A picture of which version was made from which, of whose rows: time goes down, a run a column."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from fedpeft.errors import InputError
from fedpeft.report._svg import INK, MUTED, SERIES, house_style

_SUFFIXES = (".svg", ".png")
_MOST_CLIENTS = 6


@dataclass(frozen=True, kw_only=True)
class LineageNode:
    """One version.

    Attributes:
        withdrawn: It is used no more.
        method: "federated", "imported", or that of the removal that made it.
        clients: Of its round.
        aliases: That point at it.
        named: It is the one that was asked for.
    """

    digest: str
    run_id: str
    round: int
    parent: str | None
    withdrawn: bool
    method: str
    clients: tuple[str, ...]
    aliases: tuple[str, ...]
    named: bool


def draw_lineage(nodes: Sequence[LineageNode], path: Path) -> None:
    """Writes the picture.

    Args:
        nodes: Oldest first.
        path: .svg or .png.

    Raises:
        InputError: If it has another ending, or cannot be written.
    """
    if path.suffix.lower() not in _SUFFIXES:
        raise InputError(f"a picture ends in {' or '.join(_SUFFIXES)}, got {path.name!r}")
    runs = list(dict.fromkeys(node.run_id for node in nodes))
    with house_style():
        figure = Figure(figsize=(3.4 + 2.6 * len(runs), 1.2 + 0.5 * len(nodes)))
        figure.set_layout_engine("none")
        FigureCanvasSVG(figure)
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.set_axis_off()
        axes.set_xlim(-0.4, len(runs) + 0.5)
        axes.set_ylim(len(nodes) - 0.2, -1.4)
        last: dict[str, tuple[float, float]] = {}
        for column, run_id in enumerate(runs):
            axes.text(column, -0.9, run_id, color=MUTED, size=9, va="center", family="monospace")
        for row, node in enumerate(nodes):
            column = runs.index(node.run_id)
            if node.parent in last:
                x, y = last[node.parent]
                axes.plot([x, column], [y, row], color=MUTED, linewidth=1.0, zorder=1)
            colour = MUTED if node.withdrawn else SERIES[column % len(SERIES)]
            axes.scatter(
                [column],
                [row],
                s=110 if node.named else 60,
                color="white" if node.withdrawn else colour,
                edgecolors=INK if node.named else colour,
                linewidths=1.5,
                zorder=2,
            )
            axes.text(
                column + 0.09, row, _label(node), color=MUTED if node.withdrawn else INK, size=9,
                va="center",
            )  # fmt: skip
            last[node.digest] = column, row
        try:
            figure.savefig(path, bbox_inches="tight", dpi=150)
        except OSError as error:
            raise InputError(f"{path} cannot be written ({error.strerror})") from error


def _label(node: LineageNode) -> str:
    parts = [node.digest[:8]]
    if node.method != "federated":
        parts.append(node.method)
    elif node.round == 0:
        parts.append("start")
    if node.clients:
        more = len(node.clients) - _MOST_CLIENTS
        shown = ", ".join(node.clients[:_MOST_CLIENTS])
        parts.append(f"{shown} and {more} more" if more > 0 else shown)
    if node.withdrawn:
        parts.append("withdrawn")
    parts += [f"[{alias}]" for alias in node.aliases]
    return " · ".join(parts)
