"""Numbers and untrusted names as text for people: one wording for page, plots and terminal."""

import math
from decimal import ROUND_CEILING, Decimal

_SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def printable(text: str, max_length: int | None = None) -> str:
    r"""An untrusted name that is safe to show on one line.

    Args:
        text: A client id, a label, a note.
        max_length: Longest result in characters; the middle of a longer one becomes "…".

    Returns:
        The text with every control, bidirectional-override and unassigned character
        escaped (`\x1b`), so that it can neither steer a terminal nor break XML.
    """
    safe = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )
    if max_length is None or len(safe) <= max_length:
        return safe
    head = (max_length - 1) // 2
    return f"{safe[: max_length - 1 - head]}…{safe[len(safe) - head :]}"


def epsilon(value: float) -> str:
    """An ε with two decimals, rounded up: what is shown is never less than what was spent."""
    if not math.isfinite(value):
        return "∞"
    return str(Decimal(repr(float(value))).quantize(Decimal("0.01"), rounding=ROUND_CEILING))


def budget(value: float) -> str:
    """A target ε as it was asked for: at least two decimals, and none of it rounded away."""
    return f"{value:.2f}" if float(f"{value:.2f}") == value else f"{value:.10g}"


def delta(value: float) -> str:
    """A δ, or any tiny number, in scientific notation, as people write it."""
    mantissa, exponent = f"{value:.2e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa}\N{MULTIPLICATION SIGN}10{str(int(exponent)).translate(_SUPERSCRIPT)}"


def percent(fraction: float) -> str:
    """A share of one as a percentage with one decimal: "81.4 %"."""
    return f"{fraction * 100:.1f} %" if math.isfinite(fraction) else number(fraction)


def number(value: float) -> str:
    """A plain number with four significant digits; "not finite" for NaN and infinities."""
    if not math.isfinite(value):
        return "not finite"
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.4g}"
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else delta(value)


def metric(name: str, value: float) -> str:
    """A held-out metric by its name: accuracies as percentages, the rest as measured numbers."""
    return percent(value) if name.endswith("accuracy") else measured(value)


def measured(value: float) -> str:
    """A measured number: as `number`, but with its trailing zeros, so that columns line up."""
    if math.isfinite(value) and 1e-3 <= abs(value) < 1e4:
        return f"{value:#.4g}".rstrip(".")
    return number(value)


def count(value: int) -> str:
    """A count with its thousands apart: "12,345"."""
    return f"{value:,}"


def size(num_bytes: float) -> str:
    """A size in decimal units: "1.2 MB"."""
    scale, unit = size_unit(num_bytes)
    scaled = num_bytes / scale
    return f"{scaled:.1f} {unit}" if scale > 1 and scaled < 99.95 else f"{scaled:.0f} {unit}"


def size_unit(num_bytes: float) -> tuple[int, str]:
    """The decimal unit for sizes up to `num_bytes`, with its bytes: (1000000, "MB")."""
    for power, unit in ((4, "TB"), (3, "GB"), (2, "MB"), (1, "kB")):
        if num_bytes >= 1000**power:
            return 1000**power, unit
    return 1, "B"


def duration(seconds: float) -> str:
    """Seconds as people say them: "0.8 s", "2 min 13 s", "3 h 05 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"
