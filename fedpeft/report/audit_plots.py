"""The figures of an audit, each as one `<svg>` element; None where there is nothing to show."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import FuncFormatter, NullFormatter

from fedpeft.federated.audit_mechanism import MechanismAudit
from fedpeft.federated.audit_membership import MembershipReport
from fedpeft.federated.audit_run import RunAudit
from fedpeft.report import text
from fedpeft.report._svg import INK, MUTED, SERIES, house_style, inline_svg, new_figure

_SIZE_PX = (510, 320)
_WIDE_PX = 1040
_BAR_PX = 34
_NUM_BINS = 40
_MAX_CLIENTS = 5


def scores_svg(
    name: str, title: str, scores: Sequence[float | None], included: Sequence[bool]
) -> str:
    """Canary scores of those that were in and those that were out, as two histograms.

    Args:
        name: Of the figure, unique in the page.
        title: Over the figure.
        scores: Of each canary; None where it was not finite, which is not drawn.
        included: Its coin.
    """
    sides = [
        np.array(
            [
                s
                for s, is_in in zip(scores, included, strict=True)
                if is_in is side and s is not None
            ]
        )
        for side in (False, True)
    ]
    known = np.concatenate(sides)
    with house_style():
        figure = new_figure(*_SIZE_PX)
        ax = figure.add_subplot()
        # The farthest scores would squeeze all others into one bar.
        low, high = np.quantile(known, [0.002, 0.998]) if len(known) else (0.0, 1.0)
        edges = np.linspace(low, high if high > low else low + 1, _NUM_BINS + 1)
        for values, colour, label in zip(sides, (SERIES[7], SERIES[1]), ("out", "in"), strict=True):
            clipped = np.clip(values, edges[0], edges[-1])
            ax.hist(
                clipped,
                edges.tolist(),
                color=colour,
                alpha=0.55,
                label=f"{label} ({len(values):,})",
            )
        ax.set_title(title)
        ax.set_xlabel("Score")
        ax.set_ylabel("Canaries")
        figure.legend(loc="outside lower left", ncols=2)
        return inline_svg(figure, f"scores-{name}", f"{title}, in and out")


def roc_svg(reports: Sequence[MembershipReport], epsilon: float | None, delta: float) -> str | None:
    """True- over false-positive rate, both logarithmic, with the ceiling that (ε, δ)-DP gives.

    The rows of all clients together, then at most five clients.
    """
    if not reports:
        return None
    floor = 0.5 / max(reports[0].attack.num_non_members, reports[0].attack.num_members)
    grid = np.geomspace(floor, 1, 200)
    with house_style():
        figure = new_figure(*_SIZE_PX)
        ax = figure.add_subplot()
        ax.plot(grid, grid, color=MUTED, linestyle=(0, (5, 3)), linewidth=1.3, label="chance")
        if epsilon is not None:
            ceiling = np.minimum(1.0, math.exp(min(epsilon, 50.0)) * grid + delta)
            other = 1 - np.clip((1 - grid - delta) * math.exp(-epsilon), 0, 1)
            ax.plot(
                grid,
                np.minimum(ceiling, other),
                color=INK,
                linestyle=(0, (1, 2)),
                label=f"ceiling at ε = {text.epsilon(epsilon)}",
            )
        for report, colour in zip(reports[: 1 + _MAX_CLIENTS], SERIES, strict=False):
            fpr, tpr = np.array(report.roc).T
            ax.step(
                np.maximum(fpr, floor),
                np.maximum(tpr, floor),
                where="post",
                color=colour,
                linewidth=1.8 if report is reports[0] else 1.0,
                label=f"rows of {text.printable(report.members, 18)}",
            )
        ax.set_xscale("log")
        ax.set_yscale("log")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
            axis.set_minor_formatter(NullFormatter())
        ax.set_xlim(floor, 1)
        ax.set_ylim(floor, 1.05)
        ax.set_title("Membership inference on real rows")
        ax.set_xlabel("False-positive rate (held-out rows)")
        ax.set_ylabel("True-positive rate (training rows)")
        figure.legend(loc="outside lower left", ncols=2)
        return inline_svg(figure, "roc", "ROC of the membership attack on logarithmic axes")


def epsilon_bars_svg(mechanism: MechanismAudit | None, run: RunAudit | None) -> str | None:
    """Lower bounds on epsilon as bars beside what the accountant claims."""
    bars: list[tuple[str, float, bool]] = []
    if mechanism:
        bars += [
            ("mechanism: accountant", mechanism.epsilon_upper, True),
            ("independent canaries", mechanism.effective_noise.epsilon_lower, False),
            ("one run, no assumption", mechanism.one_run.epsilon_lower, False),
        ]
    if run:
        if run.epsilon_upper is not None:
            bars.append(("run: accountant", run.epsilon_upper, True))
        bars += [
            (f"canary rows, {attack.name}", attack.bound.epsilon_lower, False)
            for attack in run.attacks
        ]
    if not bars:
        return None
    with house_style():
        figure = new_figure(_WIDE_PX, 76 + _BAR_PX * len(bars))
        ax = figure.add_subplot()
        places = np.arange(len(bars))[::-1]
        values = [value for _, value, _ in bars]
        colours = [SERIES[7] if is_claim else SERIES[0] for _, _, is_claim in bars]
        ax.barh(places, values, 0.62, color=colours)
        ax.set_yticks(places, labels=[name for name, _, _ in bars])
        ax.grid(visible=False, axis="y")
        longest = max(*values, 1e-6)
        for place, (_, value, is_claim) in zip(places, bars, strict=True):
            sign = "≤" if is_claim else "≥"
            shown = text.epsilon(value) if is_claim else f"{math.floor(value * 100) / 100:.2f}"
            ax.text(value + 0.008 * longest, place, f"{sign} {shown}", va="center", fontsize=10)
        ax.set_xlim(0, 1.1 * longest)
        ax.set_title("ε: claimed (grey) and found at least (blue)")
        return inline_svg(figure, "epsilon-bars", "Claimed epsilon and lower bounds as bars")
