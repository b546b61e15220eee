"""Accuracy of `fedpeft simulate` over data sets, aggregators, learning rates and seeds.

    python benchmarks/accuracy.py --data-root ../shared/data --output runs/accuracy \
        --dataset snips7 banking77 --aggregator fedsvd ffa-lora --seed 0 1 2

Every run is one process of `fedpeft simulate examples/snips.toml` with overrides, so that all arms
share everything but what is named. Runs that are already there are not run again. Prints a Markdown
table with means and Student-t 95 % intervals over seeds, and writes it beside the runs.
"""

import argparse
import itertools
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

from scipy.stats import t as student_t

CONFIG = Path(__file__).parent.parent / "examples" / "snips.toml"
FEDPEFT = [sys.executable, "-c", "from fedpeft.cli.main import run; run()"]


def settings(dataset: str, root: Path) -> list[str]:
    """The overrides that point the configuration at a data set."""
    folder = root / dataset
    if dataset == "clinc150":
        return [
            f"data.train={folder}/data_small.train.jsonl",
            f"data.test={folder}/data_small.test.jsonl",
            "data.label_column=label_name",
            "data.partition=column",
            "data.partition_column=label_name",
            f"data.partition_groups={folder}/domains.json",
            "federation.num_clients=10",
        ]
    return [f"data.train={folder}/train.jsonl", f"data.test={folder}/test.jsonl"]


def run(output: Path, overrides: list[str]) -> dict:
    if not (output / "report.json").exists():
        command = [*FEDPEFT, "simulate", str(CONFIG), "--output", str(output), "--quiet"]
        if output.exists():
            command = [*FEDPEFT, "simulate", "--resume", str(output), "--quiet"]
        else:
            command += [word for override in overrides for word in ("--set", override)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads((output / "report.json").read_text())


def interval(values: list[float]) -> str:
    text = f"{100 * mean(values):.2f}"
    if len(values) > 1:
        half = student_t.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5
        text += f" ± {100 * half:.2f}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--dataset", nargs="+", default=["snips7"])
    parser.add_argument("--aggregator", nargs="+", default=["fedsvd"])
    parser.add_argument("--learning-rate", nargs="+", type=float, default=[1.0])
    parser.add_argument("--seed", nargs="+", type=int, default=[0])
    parser.add_argument("--set", nargs="*", default=[], dest="overrides")
    args = parser.parse_args()
    table = defaultdict(list)
    for arm in itertools.product(args.dataset, args.aggregator, args.learning_rate, args.seed):
        dataset, aggregator, rate, seed = arm
        overrides = [
            *settings(dataset, args.data_root),
            f"output.name={dataset}, {aggregator}, seed {seed}",
            f"federation.aggregator={aggregator}",
            f"federation.learning_rate={rate}",
            f"federation.seed={seed}",
            *args.overrides,
        ]
        report = run(args.output / "-".join(map(str, arm)), overrides)
        accuracy = report["evaluation"]["metrics"]["accuracy"]
        seconds = report["seconds"]["total"]
        print(*arm, f"accuracy {accuracy:.4f}", f"{seconds:.0f} s", flush=True)
        table[arm[:3]].append(
            (accuracy, seconds, max(c["epsilon"] or 0 for c in report["clients"]))
        )
    lines = [
        "| data | aggregator | lr | seeds | accuracy, % | largest ε | median s |",
        "|---" * 7 + "|",
    ]
    for (dataset, aggregator, rate), runs in table.items():
        accuracies, seconds, epsilons = zip(*runs, strict=True)
        lines.append(
            f"| {dataset} | {aggregator} | {rate:g} | {len(runs)} | {interval(list(accuracies))} "
            f"| {max(epsilons):.3f} | {sorted(seconds)[len(seconds) // 2]:.0f} |"
        )
    print("\n".join(lines))
    (args.output / "table.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
