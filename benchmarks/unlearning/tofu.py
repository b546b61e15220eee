"""Cells of the table of unlearning on TOFU: one JSON a method, split and seed.

    python benchmarks/unlearning/tofu.py --model ../smollm2 --data ../shared/data/tofu \
        --output runs/tofu --split forget01 --seed 0 --tune
    python benchmarks/unlearning/tofu.py ... --split forget01 forget05 --seed 0 1 2
    python benchmarks/unlearning/tofu.py ... --split forget01 --rates-of forget01 --staying 30

The last one's cells are named forget01x30, for the 30 authors that stay in place of 5. A cell that
is there is not made again, so that a run may be stopped at any time. The affected version ("full")
and the reference that never saw the rows ("reference") are trained first and kept as safetensors. A
method goes on until the mean loss of the rows to be forgotten has reached the reference's, and is
measured there: at equal forgetting. Seconds are CPU seconds of one thread, without the time of
looking.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from cells import Setting, trained, warm
from measures import measure, of_base, probability, told
from safetensors.torch import load_file, save_file
from tofu_rows import FEWEST_STAYING, MOST_STAYING, Rows, read_rows

from fedpeft.errors import DivergedError
from fedpeft.unlearning.config import UnlearningConfig
from fedpeft.unlearning.forgetting import Step
from fedpeft.unlearning.low_rank_edit import LowRankEdit, Successor
from fedpeft.unlearning.unlearn import Deployed, Progress, unlearn

METHODS = ("loku", "gradient-difference", "gradient-ascent", "npo", "simnpo", "kl")
RATES = (2e-3, 5e-3)
EPOCHS = {"forget01": 12, "forget05": 3}
BATCH_SIZE, RANK = 20, 8


class _ReachedError(Exception):
    """The rows are as unknown as to the reference."""


class Watch:
    """Looks along the steps, and ends them once the rows are forgotten.

    Attributes:
        curve: Step, loss of rows to be forgotten, probability of rows that stay, share of the
            former's tokens that are predicted (MA).
        seconds: CPU time of looking.
        successor: The first one whose rows are forgotten, or the last one.
    """

    def __init__(self, rows: Rows, level: float, most: int, every: int) -> None:
        self._rows, self._level, self._most, self._every = rows, level, most, every
        self._check = rows.truths["check"].rows
        self.curve: list[tuple[int, float, float, float]] = []
        self.seconds = 0.0
        self.successor: Successor | None = None

    def __call__(self, edit: LowRankEdit, step: Step) -> None:
        """Looks; raises once the rows are forgotten."""
        if step.number % self._every and step.number != step.num_steps:
            return
        began = time.process_time()
        losses_N, accuracy_N = told(edit.model, self._rows.few, self._most)
        loss, accuracy = float(losses_N.mean()), float(accuracy_N.mean())
        kept = probability(edit.model, self._check, self._most)
        self.curve.append((step.number, loss, kept, accuracy))
        reached = loss >= self._level
        self.seconds += time.process_time() - began
        if reached or step.number == step.num_steps:
            self.successor = edit.successor()
        if reached:
            raise _ReachedError


def run_method(
    setting: Setting,
    rows: Rows,
    tensors: dict,
    level: tuple[float, float],
    config: UnlearningConfig,
    path: Path,
    seed: int,
) -> dict:
    """Unlearns, writes the successor beside `path`, and returns what was seen."""
    most = setting.model.max_tokens_per_batch
    watch = Watch(rows, level[0], most, 1 if len(rows.forget) < 100 else 2)
    deployed = Deployed(
        model=setting.model, adapter=setting.adapter, tensors=tensors, num_classes=0
    )
    base, began = setting.base(), time.process_time()
    importance, ended = 0.0, "steps"

    def heard(progress: Progress) -> None:
        nonlocal importance
        if progress.phase == "importance":
            importance = time.process_time() - began

    try:
        unlearn(
            base,
            deployed,
            rows.forget,
            rows.seen,
            config,
            seed=seed,
            told=heard,
            watched=watch,
        )
    except _ReachedError:
        ended = "reached"
    except DivergedError as error:
        ended = str(error)
    cell = {
        "ended": ended,
        "seconds": time.process_time() - began - watch.seconds,
        "seconds_of_importance": importance,
        "learning_rate": config.learning_rate,
        "start": "importance" if config.starts_from_importance else "zero",
        "level": level,
        "curve": watch.curve,
    }
    if watch.successor is not None:
        save_file(watch.successor.tensors, path.with_suffix(".safetensors"))
        adapter = {key: getattr(watch.successor.config, key) for key in ("rank", "alpha")}
        cell |= {"lost": watch.successor.lost, "adapter": adapter}
    return cell


def config_of(method: str, split: str, rate: float) -> UnlearningConfig:
    """The settings that all methods share; 'loku-zero' is LoKU's objective from B = 0."""
    return UnlearningConfig(
        method=method.removesuffix("-zero"),  # type: ignore[arg-type]
        start="zero" if method.endswith("-zero") else None,
        rank=RANK,
        learning_rate=rate,
        num_epochs=EPOCHS[split],
        warmup_epochs=0.5,
        batch_size=BATCH_SIZE,
        importance_rows=len_of_importance(split),
    )


def len_of_importance(split: str) -> int:
    """Rows that stay in LoKU's importance: as many as are forgotten, or all."""
    return 40 if split == "forget01" else 60


def best_rate(output: Path, split: str, method: str) -> float:
    """The rate whose rows that stay are most probable where forgetting is reached."""
    found = [json.loads(path.read_text()) for path in output.glob(f"try-{split}-{method}-0-*.json")]
    if not found:
        raise SystemExit(f"no rates were tried for {method} on {split}: --tune comes first")
    reached = [cell for cell in found if cell["ended"] == "reached"] or found
    if reached is found:  # none forgets: the one that comes nearest
        return float(max(found, key=lambda cell: cell["curve"][-1][1])["learning_rate"])
    return float(max(reached, key=lambda cell: cell["curve"][-1][2])["learning_rate"])


def write(path: Path, cell: dict) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(cell, indent=1))
    part.replace(path)
    shown = {k: v for k, v in cell.items() if isinstance(v, int | float | str)}
    print(path.name, shown, cell.get("curve", [])[-1:], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--split", nargs="+", choices=list(EPOCHS), default=list(EPOCHS))
    parser.add_argument("--seed", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--method", nargs="*", default=list(METHODS))
    parser.add_argument("--rate", nargs="+", type=float, default=list(RATES))
    parser.add_argument("--tune", action="store_true", help="try the rates; measure nothing")
    parser.add_argument("--rates-of", help="split whose rates are taken; default: the same")
    parser.add_argument(
        "--staying",
        type=int,
        default=FEWEST_STAYING,
        choices=range(FEWEST_STAYING, MOST_STAYING + 1),
        metavar="AUTHORS",
        help="authors of 20 rows that stay, at least 5; the default is what the table is made of",
    )
    parser.add_argument("--layers", nargs=2, type=int, default=(26, 30), metavar=("KEPT", "ALL"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.output.mkdir(parents=True, exist_ok=True)
    for split in args.split:
        setting = Setting.of(args.model, *args.layers)
        rows = read_rows(
            args.data, split, setting.model, setting.tokenizer, num_staying=args.staying
        )
        more = "" if args.staying == FEWEST_STAYING else f"x{args.staying}"
        name = split + more
        most = setting.model.max_tokens_per_batch
        others = [d for t in rows.truths.values() for d in (t.rows, t.others.paraphrased)]
        others += [t.others.wrong for t in rows.truths.values()]
        warm(setting, [rows.full, rows.held_out, *others], args.output / f"states-{name}.pt")
        never = of_base(setting, rows)
        for seed in args.seed:
            full, of_full = trained(
                setting, rows.full, args.output / f"full-{name}-{seed}.safetensors", seed=seed
            )
            reference, of_retraining = trained(
                setting, rows.retain, args.output / f"reference{more}-{seed}.safetensors", seed=seed
            )
            for method, tensors, seconds in (
                ("full", full, of_full),
                ("reference", reference, of_retraining),
            ):
                path = args.output / f"{name}-{method}-{seed}.json"
                if not args.tune and not path.exists():
                    found = measure(setting, rows, setting.adapter, tensors, never)
                    write(path, {"seconds": seconds, **found})
            of_reference = told(setting.adapted(reference), rows.few, most)
            level = (float(of_reference[0].mean()), float(of_reference[1].mean()))
            for method in args.method:
                path = args.output / f"{name}-{method}-{seed}.json"
                if path.exists():
                    continue
                rates = args.rate
                if not args.tune:
                    rates = [best_rate(args.output, args.rates_of or name, method)]
                for rate in rates:
                    tried = args.output / f"try-{name}-{method}-{seed}-{rate:g}.json"
                    successor = tried.with_suffix(".safetensors")
                    if not (tried.exists() and (args.tune or successor.exists())):
                        config = config_of(method, split, rate)
                        write(tried, run_method(setting, rows, full, level, config, tried, seed))
                    if not args.tune:
                        cell = json.loads(tried.read_text())
                        after = load_file(successor)
                        adapter = setting.adapter.model_copy(update=cell["adapter"])
                        write(path, cell | measure(setting, rows, adapter, after, never))


if __name__ == "__main__":
    main()
