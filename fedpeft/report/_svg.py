"""How every figure looks, and how it becomes bytes: the same figure gives the same bytes.

Only `matplotlib.figure.Figure` is used, so that no window system, no pyplot state and none of
the user's matplotlib settings take part.
"""

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import matplotlib as mpl
import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedpeft.errors import InputError

# Okabe and Ito (2008), told apart under the common colour-vision deficiencies; reordered so
# that the first ones have the most contrast on white and on black.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#8a8a8a")
INK, MUTED, GRID, PAPER = "#1f2731", "#5b6672", "#dfe3e8", "#fefefe"

PX_PER_INCH = 72  # one SVG user unit is one point; the page shows one as one CSS pixel

# In the page these colours follow the light or dark theme; in a saved file they are fixed.
_THEME = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper", SERIES[0]: "accent"}
_SVG_NS = "http://www.w3.org/2000/svg"
_RC: dict[Any, Any] = {  # matplotlib spells out every key in a type of its own
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 11,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlepad": 10,
    "axes.unicode_minus": True,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.06,
    "figure.facecolor": "none",
    "font.family": ["DejaVu Sans"],
    "font.size": 11,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "legend.handlelength": 1.4,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "lines.solid_capstyle": "round",
    "pdf.fonttype": 42,
    "text.color": INK,
    "text.parse_math": False,  # client ids and labels are text, never formulas
    "xtick.color": MUTED,
    "xtick.labelsize": 10,
    "xtick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.color": MUTED,
    "ytick.labelsize": 10,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
}


@contextlib.contextmanager
def house_style() -> Iterator[None]:
    """Our style on top of matplotlib's defaults; build and save every figure inside it."""
    with matplotlib.style.context("default"), mpl.rc_context(_RC), warnings.catch_warnings():
        # A browser has the letters that matplotlib's own font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def new_figure(width_px: float, height_px: float) -> Figure:
    """An empty figure of that size in CSS pixels; call it inside `house_style`."""
    return Figure(figsize=(width_px / PX_PER_INCH, height_px / PX_PER_INCH), dpi=PX_PER_INCH)


def fit_rounds(ax: Axes, first: int, last: int) -> None:
    """Give `ax` an axis of whole rounds with a little room on both sides."""
    margin = max(0.6, 1.4 - (last - first) / 2)  # a single round is a bar, not a wall
    ax.set_xlim(first - margin, last + margin)
    step = max(1, round((last - first) / 8))
    for nice in (1, 2, 5, 10, 20, 25, 50, 100, 200, 250, 500, 1000):
        if nice >= step:
            step = nice
            break
    start = -(-first // step) * step
    ticks = list(range(start, last + 1, step)) or [first]
    ax.set_xticks(ticks, labels=[str(t) for t in ticks])
    ax.set_xlabel("Round")
    ax.grid(visible=False, axis="x")


def inline_svg(figure: Figure, name: str, description: str) -> str:
    """The figure as one `<svg>` element for an HTML page.

    Args:
        figure: What to draw.
        name: Unique in the page; prefixes every id, so that figures cannot mix up.
        description: What a screen reader says.

    Returns:
        Well-formed XML without prolog, metadata, style sheet or anything outside of itself.
        Text stays text; the neutral colours are CSS variables with the light theme as default.
    """
    raw = _rendered(figure, "svg", {"svg.fonttype": "none", "svg.hashsalt": name})
    root = ET.fromstring(raw)  # noqa: S314  matplotlib wrote it just now
    used = {ref for element in root.iter() for ref in _references(element)}
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        element.text = element.text if element.text and element.text.strip() else None
        element.tail = None
        attributes = {_local(key): value for key, value in element.attrib.items()}
        element.attrib.clear()
        for key, value in attributes.items():
            if key == "id":
                if value in used:
                    element.set("id", f"{name}-{value}")
            else:
                element.set(key, _own(value, name, used))
    root.attrib = {
        "xmlns": _SVG_NS,
        "viewBox": root.get("viewBox", ""),
        "role": "img",
        "aria-label": description,
    }
    return ET.tostring(root, encoding="unicode")


def save_figure(fig: Figure, path: str | Path) -> None:
    """Write a figure as .svg, .png or .pdf; the same figure gives the same bytes.

    Args:
        fig: For example what `partition_figure` returned.
        path: Where to; its suffix chooses the format. An SVG draws its text as outlines, so
            that it looks the same in every program.

    Raises:
        InputError: The suffix is none of the three.
    """
    path = Path(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("svg", "png", "pdf"):
        raise InputError(
            f"a figure is saved as .svg, .png or .pdf, not as {path.name!r}; change the suffix"
        )
    rc = {"svg.fonttype": "path", "svg.hashsalt": "fedpeft", "figure.facecolor": PAPER}
    path.write_bytes(_rendered(fig, kind, rc))


def _rendered(figure: Figure, kind: str, rc: dict[Any, Any]) -> bytes:
    dated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}[kind]
    buffer = io.BytesIO()
    dpi = 200 if kind == "png" else PX_PER_INCH
    facecolor = rc.get("figure.facecolor", "none")
    with house_style(), mpl.rc_context(rc):
        figure.savefig(buffer, format=kind, metadata=dated, dpi=dpi, facecolor=facecolor)
    return buffer.getvalue()


def _local(name: str) -> str:
    return name.rsplit("}", 1)[-1]


def _references(element: ET.Element) -> Iterator[str]:
    for key, value in element.attrib.items():
        if _local(key) == "href" and value.startswith("#"):
            yield value[1:]
        elif "url(#" in value:
            yield value.split("url(#", 1)[1].split(")", 1)[0]


def _own(value: str, name: str, used: set[str]) -> str:
    """An attribute's value with our ids and the theme's colours in it."""
    if value.startswith("#") and value[1:] in used:
        return f"#{name}-{value[1:]}"
    value = value.replace("url(#", f"url(#{name}-")
    for colour, variable in _THEME.items():
        value = value.replace(colour, f"var(--{variable}, {colour})")
    return value
