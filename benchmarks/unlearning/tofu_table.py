"""The table and the figure of unlearning on TOFU, from the cells of `tofu.py`.

    python benchmarks/unlearning/tofu_table.py benchmarks/unlearning/results \
        --figure docs/figures/tofu.svg

Means over seeds with Student-t 95 % intervals. Forget quality is computed here, from the listed
truth ratios and those of the reference of the same seed.
"""

import argparse
import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, median, stdev

import numpy as np
from scipy.stats import ks_2samp
from scipy.stats import t as student_t

from fedpeft.unlearning.metrics.relearning import steps_until
from fedpeft.unlearning.metrics.truth_ratio import forget_quality, model_utility

ORDER = (
    "full",
    "reference",
    "loku",
    "loku-zero",
    "gradient-difference",
    "gradient-ascent",
    "npo",
    "simnpo",
    "kl",
)
KNOWN = 0.25
"""Rows are learned again once their loss has come this near to what it was, as in the gate."""


def cells(folder: Path) -> dict[tuple[str, str], dict[int, dict]]:
    """Cells by split and method, and by seed."""
    found: dict[tuple[str, str], dict[int, dict]] = defaultdict(dict)
    for path in sorted(folder.glob("forget*.json")):
        split, rest = path.stem.split("-", 1)
        method, seed = rest.rsplit("-", 1)
        found[split, method][int(seed)] = json.loads(path.read_text())
    return found


def interval(values: Sequence[float], digits: int = 3) -> str:
    """Mean and half-width; one value has no interval, and none is a dash."""
    if not values:
        return "–"
    text = f"{mean(values):.{digits}f}"
    if len(values) > 1:
        half = student_t.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5
        text += f" ± {half:.{digits}f}"
    return text


def utility(cell: dict) -> float:
    """Harmonic mean of seven of TOFU's nine parts: see `measures.measure`."""
    skipped = ("ROUGE-L recall on real_authors", "ROUGE-L recall on world_facts")
    return model_utility([part for name, part in cell["parts"].items() if name not in skipped])


def kept(cell: dict) -> float:
    """Mean probability of the answers of rows that stay."""
    return cell["parts"]["probability on rows that stay"]


def at_level(cell: dict) -> float | None:
    """Probability of the looked-at rows that stay, interpolated to exactly the reference's loss.

    A step may jump far over the level; what is measured after it has then forgotten more.
    """
    curve = cell.get("curve", [])
    for (_, before, kept_before, *_), (_, after, kept_after, *_) in itertools.pairwise(curve):
        if before < cell["level"][0] <= after:
            share = (cell["level"][0] - before) / (after - before)
            return kept_before + share * (kept_after - kept_before)
    return None


def relearning_steps(cell: dict, full: dict, reference: dict) -> float:
    """Steps until the rows are known again; one more than were taken where they are not."""
    known, unknown = full["relearning"][0], reference["relearning"][0]
    found = steps_until(cell["relearning"], known + KNOWN * (unknown - known))
    return len(cell["relearning"]) if found is None else found


def table(found: dict[tuple[str, str], dict[int, dict]], split: str) -> str:
    """Markdown."""
    full, reference = found[split, "full"], found[split, "reference"]
    columns: dict[str, Callable[[str, int, dict], float]] = {
        "utility": lambda _, seed, cell: utility(cell),
        "retained probability": lambda _, seed, cell: kept(cell),
        "forget probability": lambda _, seed, cell: cell["forget_probability"],
        "EL₅": lambda _, seed, cell: cell["extraction"],
        "MA": lambda _, seed, cell: cell["memorization_accuracy"],
        "ROUGE-L": lambda _, seed, cell: cell["forget_rouge"],
        "membership AUC": lambda _, seed, cell: cell["membership"]["auc"],
        "KS distance": lambda _, seed, cell: float(
            ks_2samp(cell["truth_ratios"], reference[seed]["truth_ratios"]).statistic
        ),
        "relearning steps": lambda _, seed, cell: relearning_steps(
            cell, full[seed], reference[seed]
        ),
        "CPU s": lambda _, seed, cell: cell["seconds"],
        "of retraining, %": lambda _, seed, cell: (
            100 * cell["seconds"] / reference[seed]["seconds"]
        ),
    }
    head = ["method", "seeds", "forget quality (p)", *columns]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for method in ORDER:
        of_seed = found.get((split, method), {})
        usable = {s: c for s, c in of_seed.items() if "utility" in c and s in reference}
        if not usable:
            continue
        quality = [
            forget_quality(
                np.array(cell["truth_ratios"]), np.array(reference[seed]["truth_ratios"])
            )
            for seed, cell in usable.items()
        ]
        missed = [cell for cell in usable.values() if cell.get("ended", "reached") != "reached"]
        values = [
            method + (f" ({len(missed)} not at the level)" if missed else ""),
            str(len(usable)),
            f"{median(quality):.2g} ({min(quality):.2g} to {max(quality):.2g})",
            *(
                interval(
                    [of(method, seed, cell) for seed, cell in usable.items()],
                    0
                    if name == "of retraining, %"
                    else 1
                    if name in ("CPU s", "relearning steps")
                    else 3,
                )
                for name, of in columns.items()
            ),
        ]
        lines.append(f"| {' | '.join(values)} |")
    return "\n".join(lines)


def differences(found: dict[tuple[str, str], dict[int, dict]], split: str) -> str:
    """LoKU's utility and retained probability less each other's, of the same seed."""
    ours, lines = found.get((split, "loku"), {}), []
    for method in ORDER:
        theirs = found.get((split, method), {})
        both = [s for s in ours if s in theirs and "utility" in ours[s] and "utility" in theirs[s]]
        if method in ("loku", "full") or not both:
            continue
        gains = []
        for of in (utility, kept, at_level):
            pairs = [(of(ours[seed]), of(theirs[seed])) for seed in both]
            gaps = [a - b for a, b in pairs if a is not None and b is not None]
            gains.append(interval(gaps) + (f" ({len(gaps)})" if len(gaps) < len(both) else ""))
        lines.append(f"| {method} | {len(both)} | {' | '.join(gains)} |")
    head = "| LoKU less | seeds | utility | retained probability | at the level |\n"
    head += "|---|---|---|---|---|\n"
    return head + "\n".join(lines)


def figure(found: dict[tuple[str, str], dict[int, dict]], path: Path) -> None:
    """Utility against the distance of truth ratios from the reference's; a dot a seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams["svg.hashsalt"] = "fedpeft"
    splits = sorted({split for split, _ in found})
    shapes = dict(zip(ORDER, "*DosP^v<>", strict=True))
    picture, axes = plt.subplots(1, len(splits), figsize=(4.6 * len(splits), 3.8), squeeze=False)
    for split, axis in zip(splits, axes[0], strict=True):
        reference = found[split, "reference"]
        for number, method in enumerate(ORDER):
            of_seed = found.get((split, method), {})
            dots = [
                (
                    ks_2samp(cell["truth_ratios"], reference[seed]["truth_ratios"]).statistic,
                    utility(cell),
                )
                for seed, cell in of_seed.items()
                if "utility" in cell and seed in reference
            ]
            if not dots:
                continue
            x, y = zip(*dots, strict=True)
            color = f"C{number}"
            axis.scatter(x, y, s=10, color=color, alpha=0.5)
            axis.scatter(mean(x), mean(y), s=55, marker=shapes[method], color=color, label=method)
        axis.set_title(split)
        axis.set_xlabel("distance of truth ratios from the reference's (KS)")
    axes[0][0].set_ylabel("model utility")
    axes[0][-1].legend(fontsize=7)
    picture.tight_layout()
    picture.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cells", type=Path)
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    found = cells(args.cells)
    for split in sorted({split for split, _ in found}):
        print(f"### {split}\n\n{table(found, split)}\n")
        print(differences(found, split) + "\n")
    if args.figure:
        figure(found, args.figure)


if __name__ == "__main__":
    main()
