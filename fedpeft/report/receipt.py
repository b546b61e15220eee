"""A removal's receipt as one page for a person."""

from fedpeft.report import text
from fedpeft.report.html import Table, Tile
from fedpeft.report.page import house_style_sheet, template
from fedpeft.unlearning.gate.report import Estimate, Measurement
from fedpeft.unlearning.receipt import Receipt

_MAX_ID_LENGTH = 60
_KINDS = {
    "change": "Did it change",
    "forgetting": "What it shows of the records",
    "utility": "What it does for others",
}


def receipt_html(receipt: Receipt) -> str:
    """Returns a self-contained page that runs no script; everything in it is escaped.

    The page is not signed: it shows what the receipt says, and the receipt is what counts.
    """
    return template("receipt.html.j2").render(
        style=house_style_sheet(),
        receipt=receipt,
        created_at=f"{receipt.created_at:%Y-%m-%d %H:%M:%S %Z}",
        requested_at=f"{receipt.request.requested_at:%Y-%m-%d %H:%M:%S %Z}",
        tiles=_tiles(receipt),
        tables=_tables(receipt),
        epsilons=Table(
            columns=["Client", "ε", "δ"],
            rows=[
                [text.printable(name, _MAX_ID_LENGTH), text.epsilon(e.epsilon), text.delta(e.delta)]
                for name, e in sorted(receipt.epsilon.items())
            ],
        ),
    )


def _tiles(receipt: Receipt) -> list[Tile]:
    measured = receipt.gate is not None
    guarantees = {
        "none": ("none", "the adapter never had one"),
        "charged": ("kept", "the job was charged for"),
        "void": ("given up", f"for {text.printable(receipt.request.client_id, 24)}"),
    }
    guarantee, detail = guarantees[receipt.guarantee]
    by = f"by the {receipt.measured_by}" if measured else "it rests on the method"
    if receipt.privacy is not None:
        by = "no figure without noise may leave the client"
    return [
        Tile(
            title="Records",
            value=text.count(receipt.request.num_records),
            detail=f"of {text.printable(receipt.request.client_id, 24)}",
        ),
        Tile(
            title="Claim",
            value=receipt.claim,
            detail=f"by {text.printable(receipt.method, 24)}",
        ),
        Tile(title="Measured", value="passed" if measured else "not measured", detail=by),
        Tile(
            title="Versions withdrawn",
            value=text.count(len(receipt.affected)),
            detail=", ".join(text.printable(name, 24) for name in receipt.aliases)
            or "no alias pointed at them",
        ),
        Tile(
            title="Privacy guarantee",
            value=guarantee,
            detail=detail,
            alarming=receipt.guarantee == "void",
        ),
        Tile(
            title="Lost by recompression",
            value="nothing" if not receipt.lost else text.percent(receipt.lost),
            detail="" if receipt.rank is None else f"rank {receipt.rank}",
        ),
    ]


def _tables(receipt: Receipt) -> list[tuple[str, Table]]:
    """A table for each kind of measure."""
    if receipt.gate is None:
        return []
    found = []
    for kind, title in _KINDS.items():
        rows = [
            _row(precision, measured)
            for precision, some in receipt.gate.precisions.items()
            for measured in some
            if measured.kind == kind
        ]
        columns = ["Measure", "Weights", "Before", "After", "Interval", "Never seen", "Bound", ""]
        found.append((title, Table(columns=columns, rows=rows)))
    return found


def _row(precision: str, measured: Measurement) -> list[str]:
    bound = "none"
    if measured.at_most is not None:
        bound = f"at most {text.number(measured.at_most)}"
    if measured.at_least is not None:
        bound = f"at least {text.number(measured.at_least)}"
    verdict = {True: "passed", False: "FAILED", None: "reported"}[measured.passed]
    if measured.after is None:
        verdict = "not measured"
    return [
        text.printable(measured.name, _MAX_ID_LENGTH),
        precision,
        _value(measured.before),
        _value(measured.after),
        _interval(measured.after),
        _value(measured.level),
        bound,
        verdict,
    ]


def _value(estimate: Estimate | None) -> str:
    return "" if estimate is None else text.number(estimate.value)


def _interval(estimate: Estimate | None) -> str:
    if estimate is None or estimate.low is None or estimate.high is None:
        return ""
    return f"{text.number(estimate.low)} to {text.number(estimate.high)}"
