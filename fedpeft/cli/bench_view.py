"""The tables of a benchmark for the terminal: arms, ratios with their targets, checks."""

from collections.abc import Sequence
from statistics import median

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fedpeft.bench.schema import ArmReport, BenchReport, CaseReport, CheckReport, RatioReport
from fedpeft.report import text

_RED, _GREEN = "bold red", "green"
_HEADINGS = {
    "seconds": "time",
    "cpu_seconds": "processor",
    "peak_memory": "memory",
    "step_memory": "step memory",
    "wire_bytes": "wire bytes",
}


def tables(report: BenchReport) -> RenderableType:
    """Returns everything a reader of the terminal needs; bench.json has the rest."""
    parts: list[RenderableType] = []
    for case in report.cases:
        parts += [Text(case.name, style="bold"), _arms(case), _ratios(case)]
        parts += [_verdict(ratio) for ratio in case.ratios if ratio.is_met is not None]
        parts += [Text(f"  note: {note}") for note in case.notes]
        parts += [*([_checks(case.checks)] if case.checks else []), Text("")]
    threads = report.hardware.get("torch_threads", "?")
    parts.append(
        Text(
            f"{report.num_blocks} blocks, {threads} threads, {report.hardware.get('device')}; "
            f"ratios are medians over blocks [{_interval(report)}]",
            style="dim",
        )
    )
    return Group(*parts)


def _interval(report: "BenchReport") -> str:
    """What the brackets are: their coverage falls where there are few blocks."""
    covered = [
        ratio.confidence
        for case in report.cases
        for ratio in case.ratios
        if ratio.confidence is not None
    ]
    return f"{min(covered):.0%} interval" if covered else "no interval"


def _arms(case: CaseReport) -> Table:
    costs = [_costs(arm) for arm in case.arms]
    shown = [heading for heading in costs[0] if any(cost[heading] for cost in costs)]
    table = _table("arm", shown)
    for arm, cost in zip(case.arms, costs, strict=True):
        table.add_row(Text(text.printable(arm.name, 40)), *(cost[heading] for heading in shown))
    return table


def _costs(arm: ArmReport) -> dict[str, str]:
    """Column → cell; other metrics than the speed are for the reader of bench.json."""
    speed = arm.metrics.get("tokens_per_second")
    return {
        "time": _seconds(arm.seconds),
        "processor": _seconds(arm.cpu_seconds),
        "tokens/s": "" if speed is None else f"{speed:,.0f}",
        "memory": "" if arm.memory is None else text.size(arm.memory.peak_bytes),
        "of it loaded": "" if arm.memory is None else text.size(arm.memory.loaded_bytes),
    }


def _seconds(values: list[float]) -> str:
    if not values:
        return ""
    middle = median(values)
    return f"{middle:#.4g} s" if middle >= 1 else f"{1e3 * middle:#.4g} ms"


def _ratios(case: CaseReport) -> Table:
    """One row a pair of arms, one column a quantity."""
    shown = [q for q in _HEADINGS if any(ratio.quantity == q for ratio in case.ratios)]
    table = _table("ratio", [_HEADINGS[quantity] for quantity in shown])
    pairs = dict.fromkeys((ratio.numerator, ratio.denominator) for ratio in case.ratios)
    for pair in pairs:
        found = {r.quantity: r for r in case.ratios if (r.numerator, r.denominator) == pair}
        cells = [_ratio(found[q]) if q in found else "" for q in shown]
        table.add_row(Text(text.printable(" / ".join(pair), 60)), *cells)
    return table


def _table(first: str, others: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=True)
    table.add_column(first, no_wrap=True)
    for heading in others:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _ratio(ratio: RatioReport) -> Text:
    value = f"{ratio.median:.3f}"
    if ratio.low is None or ratio.high is None or ratio.quantity == "cpu_seconds":
        return Text(value)
    return Text(f"{value} [{ratio.low:.3f}, {ratio.high:.3f}]")


def _verdict(ratio: RatioReport) -> Text:
    word, style = ("met", _GREEN) if ratio.is_met else ("MISSED", _RED)
    return Text.assemble(
        f"  target: {ratio.numerator} / {ratio.denominator}, {_HEADINGS[ratio.quantity]} "
        f"<= {ratio.at_most:g}: {ratio.median:.3f} ",
        (word, style),
    )


def _checks(checks: list[CheckReport]) -> RenderableType:
    failed = [check for check in checks if not check.has_passed]
    if not failed:
        worst = max((c.error / c.tolerance for c in checks if c.error is not None), default=0.0)
        return Text(f"  {len(checks)} checks passed, the closest at {worst:.1%} of its tolerance")
    lines = [
        f"  FAILED {check.name}: "
        + ("not finite" if check.error is None else f"{check.error:.3g}")
        + f", at most {check.tolerance:.3g} ({check.measure})"
        for check in failed
    ]
    return Text("\n".join(lines), style=_RED)
