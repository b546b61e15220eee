"""How `fedpeft budget` shows a ledger: tables and a figure."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fedpeft.errors import LedgerError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fedpeft.ledger import Balance, Entry, Reservation
    from fedpeft.remote.records import MirroredBudget

_RED = "bold red"
_SHORT = 12
_PLAIN: dict[str, Any] = {"box": None, "padding": (0, 2, 0, 0), "pad_edge": False}


def print_balances(balances: Sequence["Balance"]) -> None:
    """Prints a line for each data set; red where nothing more fits."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from fedpeft.report import text

    titles = ("owner", "data set", "rows", "overlaps", "ε spent", "budget", "δ", "events", "open")
    lines = [
        (
            text.printable(b.owner),
            b.fingerprint[:_SHORT],
            text.count(b.num_rows),
            text.count(len(b.overlaps)) if b.overlaps else "",
            "" if b.spent is None else text.epsilon(b.spent),
            "" if b.epsilon is None else text.budget(b.epsilon),
            "" if b.delta is None else text.delta(b.delta),
            text.count(b.num_events),
            text.count(b.num_open) if b.num_open else "",
        )
        for b in balances
    ]
    # Columns that say nothing would take the room of those that do.
    shown = [i for i in range(len(titles)) if any(line[i] for line in lines)]
    table = Table(**_PLAIN)
    for i in shown:
        table.add_column(titles[i], no_wrap=True)
    table.add_column("state")
    for line, b in zip(lines, balances, strict=True):
        state = "no budget" if b.epsilon is None else "exhausted" if b.exhausted else ""
        style = _RED if b.exhausted else "yellow" if b.epsilon is None else ""
        table.add_row(*(Text(line[i]) for i in shown), Text(state), style=style)
    Console().print(table)


def print_mirrored(budgets: Sequence["MirroredBudget"]) -> None:
    """Prints a line for each budget that a client reported; red where nothing is left."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from fedpeft.report import text

    titles = ("client", "data set", "ε spent", "budget", "δ", "reported (UTC)", "run", "round")
    table = Table(*titles, **_PLAIN)
    for b in budgets:
        cells = (
            text.printable(b.client_id),
            text.printable(b.dataset[:_SHORT]),
            text.epsilon(b.epsilon_spent),
            text.budget(b.epsilon_budget),
            text.delta(b.delta),
            f"{b.reported_at:%Y-%m-%d %H:%M}",
            text.printable(b.run_id),
            str(b.round),
        )
        exhausted = b.epsilon_spent >= b.epsilon_budget
        table.add_row(*(Text(cell) for cell in cells), style=_RED if exhausted else "")
    Console().print(table)


def print_entries(entries: Sequence["Entry"]) -> None:
    """Prints a line for each entry."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("entry", "recorded (UTC)", "kind", "data set", "what", **_PLAIN)
    datasets = {e.body["reservation"]: e.body["dataset"] for e in entries if e.kind == "reserved"}
    for e in entries:
        name = e.body.get("dataset") or datasets.get(e.body.get("reservation"), "")
        time = e.recorded_at[:19].replace("T", " ") + (" (clock behind)" if e.clock else "")
        cells = (str(e.position), time, e.kind, name[:_SHORT], _summary(e))
        table.add_row(*(Text(cell) for cell in cells))
    Console().print(table)


def _summary(entry: "Entry") -> str:
    from fedpeft.report import text

    body = entry.body
    match entry.kind:
        case "registered":
            shared = f", shares rows with {len(body['overlaps'])}" if body["overlaps"] else ""
            return f"{text.count(body['num_rows'])} rows{shared}"
        case "budget":
            return f"ε = {body['epsilon']} at δ = {body['delta']}"
        case "reserved":
            after = body["spent"][body["dataset"]]
            purpose = f", {text.printable(body['purpose'])}" if body["purpose"] else ""
            releases = body["event"].get("num_steps", body["event"].get("num_rounds"))
            return f"{releases} releases → ε = {text.epsilon(float(after))}{purpose}"
        case "committed":
            return f"released {body['release'][:_SHORT]}"
    return f"ledger {body['ledger'][:_SHORT]}"


def concerning(entries: Sequence["Entry"], name: str) -> list["Entry"]:
    """The entries that have to do with a data set, those on rows that it shares included."""
    spent = {e.body["reservation"] for e in entries if name in e.body.get("spent", ())}
    return [
        e
        for e in entries
        if e.body.get("dataset") == name
        or name in e.body.get("overlaps", ())
        or e.body.get("reservation") in spent
    ]


def figure(
    entries: Sequence["Entry"], balance: "Balance", reservations: Sequence["Reservation"]
) -> "Figure":
    """ε after each event that counts for the data set, under the budget of that time."""
    from matplotlib.ticker import MaxNLocator

    from fedpeft.dp.accounting import epsilon
    from fedpeft.report import text
    from fedpeft.report._svg import INK, SERIES, house_style, new_figure

    name, delta = balance.fingerprint, balance.delta
    budgets = [e for e in entries if e.kind == "budget" and e.body["dataset"] == name]
    if not budgets or delta is None:
        raise LedgerError(f"data set {name[:_SHORT]} has no budget, so there is nothing to draw")
    # Events on shared rows, before this data set had a budget to count them in.
    before = [r.event for r in reservations if r.position < budgets[0].position]
    spent, limits, now = [epsilon(before, delta)], [0.0], 0.0
    for entry in concerning(entries, name):
        if entry.kind == "budget" and entry.body["dataset"] == name:
            limits[-1] = now = float(entry.body["epsilon"])
        elif entry.kind == "reserved" and name in entry.body["spent"]:
            spent.append(float(entry.body["spent"][name]))
            limits.append(now)
    with house_style():
        drawn = new_figure(640, 320)
        ax = drawn.add_subplot()
        events = range(len(before), len(before) + len(spent))
        ax.step(events, spent, where="post", color=SERIES[0], marker="o", label="spent")
        ax.step(
            *(events, limits),
            where="post",
            color=INK,
            linestyle=(0, (5, 3)),
            linewidth=1.3,
            marker="_",
            label=f"budget {text.budget(now)}",
        )
        ax.set_ylim(0, 1.08 * max(*spent, *limits, 1e-6))
        ax.set_xlim(events[0] - 0.5, events[-1] + 0.5)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_xlabel("Events")
        ax.set_title(f"ε spent on data set {name[:_SHORT]} at δ = {text.delta(delta)}")
        ax.legend(loc="lower right")
    return drawn
