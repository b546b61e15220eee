"""Accuracy of each way to combine updates, with and without malicious clients among six.

    python benchmarks/robust.py --output runs/robust --seed 0 1 --attack 0:0 1:-10

Every run is that of examples/demo.toml with clients weighted uniformly and one evaluation at the
end; nothing but the combiner, the attack and the seed differs, and what `--set` says. The noise is
seeded, so that a run can be repeated and the arms of one seed share what is drawn: such a run
protects nobody. An attack is NUMBER:FACTOR or NUMBER:FACTOR:FIRST: that many clients, from the one
at place FIRST, train as the others do and send where they started from plus FACTOR times what they
changed. Runs that are already there are not run again. Prints a Markdown table, means over seeds
with their range, and writes it beside the runs.
"""

import argparse
import itertools
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

from torch import Tensor

from fedpeft.config import RunConfig, load_config
from fedpeft.federated.assembly import assemble
from fedpeft.federated.local_training import LocalResult
from fedpeft.federated.observer import Observer
from fedpeft.federated.run_folder import RunFolder
from fedpeft.federated.simulation import Simulation
from fedpeft.federated.trainer import Job, LocalTrainer, Trainer

CONFIG = Path(__file__).parent.parent / "examples" / "demo.toml"
COMBINERS = ("weighted-mean", "norm-bound", "median", "trimmed-mean", "multi-krum")


@dataclass(frozen=True)
class Attack:
    """So many clients send a multiple of what they changed, from place `first` in the cohort on."""

    num_clients: int
    factor: float
    first: int

    def __str__(self) -> str:
        if not self.num_clients:
            return "none"
        return f"{self.num_clients} × {self.factor:g} from client {self.first}"


@dataclass(frozen=True)
class Betrayed:
    """A trainer some of whose clients send something else than they trained."""

    honest: Trainer
    malicious: frozenset[str]
    factor: float

    def train(
        self, tensors: Mapping[str, Tensor], jobs: Iterator[Job], observer: Observer
    ) -> Iterator[tuple[Job, Mapping[str, LocalResult] | None]]:
        """See `Trainer.train`."""
        for job, results in self.honest.train(tensors, jobs, observer):
            for client_id in self.malicious & (results or {}).keys():
                sent = {
                    name: tensors[name] + self.factor * (trained - tensors[name])
                    for name, trained in results[client_id].tensors.items()
                }
                results[client_id] = replace(results[client_id], tensors=sent)
            yield job, results


def simulate(config: RunConfig, attack: Attack, output: Path) -> dict:
    """Accuracy, seconds and what every round said of its updates."""
    started = time.monotonic()
    assembly = assemble(
        config.model, config.data, config.adapter, config.federation, config.privacy
    )
    max_tokens = config.model.max_tokens_per_batch
    honest = LocalTrainer(
        assembly.model,
        assembly.datasets,
        assembly.plan.clients,
        config.federation,
        max_tokens=max_tokens,
    )
    malicious = sorted(assembly.plan.clients)[attack.first :][: attack.num_clients]
    simulation = Simulation(
        run_id=output.name,
        model=assembly.model,
        trainer=Betrayed(honest, frozenset(malicious), attack.factor),
        rows=assembly.rows,
        test=assembly.test,
        plan=assembly.plan,
        federation=config.federation,
        privacy=config.privacy,
        task=config.model.task,
        max_tokens=max_tokens,
        folder=RunFolder.create(output, {"config": config.model_dump(mode="json")}),
        observer=Observer(),
    )
    simulation.run()
    return {
        "config": config.model_dump(mode="json"),
        "malicious": malicious,
        "accuracy": simulation.final_metrics["accuracy"],
        "majority_accuracy": assembly.majority_accuracy,
        "seconds": time.monotonic() - started,
        "rounds": [record.model_dump(mode="json") for record in simulation.records],
    }


def result(combine: str, attack: Attack, seed: int, args: argparse.Namespace) -> dict:
    output = args.output / f"{combine}, attack {attack}, seed {seed}"
    stored = output / "result.json"
    if not stored.exists():
        parameters = {
            "norm-bound": [f"federation.max_update_norm={args.max_update_norm}"],
            "trimmed-mean": [f"federation.num_byzantine={args.num_byzantine}"],
            "multi-krum": [f"federation.num_byzantine={args.num_byzantine}"],
        }
        overrides = [
            f"federation.combine={combine}",
            *parameters.get(combine, []),
            "federation.weighting=uniform",
            "federation.evaluate_every=1000",
            f"federation.seed={seed}",
            "privacy.insecure_seeded_noise=true",
            *args.overrides,
        ]
        found = simulate(load_config(CONFIG, overrides), attack, output)
        stored.write_text(json.dumps(found, indent=1))
    return json.loads(stored.read_text())


def table(found: Mapping[tuple[str, Attack], Sequence[dict]], attacks: Sequence[Attack]) -> str:
    lines = [
        "| combine | " + " | ".join(map(str, attacks)) + " |",
        "|---" * (len(attacks) + 1) + "|",
    ]
    for combine in dict.fromkeys(combine for combine, _ in found):
        cells = []
        for attack in attacks:
            percent = [100 * run["accuracy"] for run in found[combine, attack]]
            spread = f" ({min(percent):.1f} to {max(percent):.1f})" if len(percent) > 1 else ""
            cells.append(f"{mean(percent):.1f}{spread}")
        lines.append(f"| {combine} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def attack_of(text: str) -> Attack:
    number, factor, first = (*text.split(":"), "0")[:3]
    return Attack(int(number), float(factor), int(first))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--combine", nargs="+", default=COMBINERS, choices=COMBINERS)
    parser.add_argument("--attack", nargs="+", type=attack_of, default=[attack_of("0:0")])
    parser.add_argument("--seed", nargs="+", type=int, default=[0])
    parser.add_argument("--max-update-norm", type=float, default=10.0)
    parser.add_argument("--num-byzantine", type=int, default=1)
    parser.add_argument("--set", nargs="*", default=[], dest="overrides")
    args = parser.parse_args()
    found = defaultdict(list)
    for seed, attack, combine in itertools.product(args.seed, args.attack, args.combine):
        run = result(combine, attack, seed, args)
        found[combine, attack].append(run)
        line = f"seed {seed}, attack {attack}, {combine}: accuracy {run['accuracy']:.4f}"
        print(line, f"{run['seconds']:.0f} s", flush=True)
    text = table(found, args.attack)
    print(text)
    (args.output / "table.md").write_text(text + "\n")


if __name__ == "__main__":
    main()
