"""Sixteen adapters in one batch, against one adapter after the other.

    python benchmarks/serving.py --output runs/serving.json --model ../shared/models/stories260k

Requests of as many adapters, one each, are there at once. `mixed` answers them in one batch;
`swap` answers one adapter's request after the other's, and changes the adapter in between at no
cost: all of them are in memory, and a reference is set. `reload` reads each adapter from its export
first. `peft` is `swap` by the peft library: `set_adapter` between calls. All arms run in one
process on the given number of threads, in blocks, each arm once a block in a random order; a ratio
is taken inside a block, and its interval lies between two order statistics of the ratios.

A causal language model continues a prompt of `--prompt-tokens` by `--new-tokens`, greedily; a
classifier (`--task classification`) takes `--prompt-tokens` and gives probabilities. Adapters are
random: rank 8 on the modules of `--modules`. Before anything is timed, all arms must have said the
same.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedpeft.adapters.config import AdapterConfig
from fedpeft.bench.environment import hardware, versions
from fedpeft.bench.interleave import paired_ratio, run_interleaved
from fedpeft.bench.schema import Quantity
from fedpeft.federated.adapted_model import AdaptedModel
from fedpeft.federated.export import export_adapter
from fedpeft.models.base_model import load_base_model
from fedpeft.models.model_config import ModelConfig
from fedpeft.serving.adapter_files import AdapterFiles, read_export_folder
from fedpeft.serving.classification import ClassificationRequest, Classifier
from fedpeft.serving.generation import Event, Failed, GenerationRequest, Generator
from fedpeft.serving.sampling import Sampling
from fedpeft.serving.served_model import ServedModel

Said = list[Any]


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured."""

    config: ModelConfig
    modules: tuple[str, ...]
    num_adapters: int
    prompt: list[int]
    new_tokens: int
    labels: tuple[str, ...]


def write_exports(case: Case, folder: Path) -> list[Path]:
    """Random adapters, strong enough that each says something else."""
    adapter = AdapterConfig(rank=8, alpha=8.0, target_modules=case.modules)
    model = AdaptedModel(
        load_base_model(case.config), case.config, adapter, num_classes=len(case.labels), seed=0
    )
    start, paths = model.tensors(), []
    for n in range(case.num_adapters):
        generator = torch.Generator().manual_seed(n)
        tensors = {
            name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator)
            for name, tensor in start.items()
        }
        paths.append(folder / f"adapter{n}")
        export_adapter(paths[-1], model, tensors, case.config, case.labels)
    return paths


class Ours:
    """The serving package, without its HTTP side."""

    def __init__(self, case: Case, paths: Sequence[Path]) -> None:
        self.case, self.paths = case, paths
        self.model = ServedModel(case.config.name, case.config.task, device="cpu")
        self.files = [read_export_folder(path) for path in paths]
        for files in self.files:
            self.model.bank.add(files)

    def mixed(self) -> Said:
        """All in one batch."""
        return self._answer(self.files)

    def swap(self) -> Said:
        """One after the other, all of them in memory."""
        return [said for files in self.files for said in self._answer([files])]

    def reload(self) -> Said:
        """One after the other, each read from its files."""
        said = []
        for path in self.paths:
            files = read_export_folder(path)
            self.model.bank.remove(files.digest)
            self.model.bank.add(files)
            said += self._answer([files])
        return said

    def _answer(self, adapters: Sequence[AdapterFiles]) -> Said:
        if self.case.config.task == "classification":
            return self._classify(adapters)
        generator = Generator(self.model, max_rows=len(adapters), max_waiting=len(adapters))
        said: Said = [[] for _ in adapters]
        sampling = Sampling(max_tokens=self.case.new_tokens, temperature=0)

        def note(n: int) -> Callable[[Event], None]:
            def emit(event: Event) -> None:
                assert not isinstance(event, Failed)
                said[n].append(getattr(event, "text", ""))

            return emit

        generator.submit(
            [
                GenerationRequest(
                    adapter=files.digest, prompt=self.case.prompt, sampling=sampling, emit=note(n)
                )
                for n, files in enumerate(adapters)
            ]
        )
        while generator.has_work():
            generator.step()
        return ["".join(pieces) for pieces in said]

    def _classify(self, adapters: Sequence[AdapterFiles]) -> Said:
        classifier = Classifier(self.model, max_rows=len(adapters), max_waiting=len(adapters))
        said: Said = []
        classifier.submit(
            [
                ClassificationRequest(adapter=files.digest, row=self.case.prompt, emit=said.append)
                for files in adapters
            ]
        )
        while classifier.has_work():
            classifier.step()
        return said


class Peft:
    """The peft library: all adapters in memory, one of them active."""

    def __init__(self, case: Case, paths: Sequence[Path], ours: Ours) -> None:
        from peft import PeftModel

        self.case, self.ours = case, ours
        base = load_base_model(case.config)
        self.model = PeftModel.from_pretrained(base, str(paths[0]), adapter_name="0").eval()
        for n, path in enumerate(paths[1:], start=1):
            self.model.load_adapter(str(path), adapter_name=str(n))
        self.ids = torch.tensor([case.prompt])

    def swap(self) -> Said:
        """One after the other, all of them in memory."""
        said = []
        for n in range(self.case.num_adapters):
            self.model.set_adapter(str(n))
            with torch.inference_mode():
                said.append(self._probabilities(n) if self.case.labels else self._text())
        return said

    def _text(self) -> str:
        out = self.model.generate(
            input_ids=self.ids,
            attention_mask=torch.ones_like(self.ids),
            max_new_tokens=self.case.new_tokens,
            do_sample=False,
            pad_token_id=0,
        )
        tokenizer = self.ours.model.tokenizer
        text: str = tokenizer.decode(out[0], skip_special_tokens=True)
        return text[len(tokenizer.decode(self.case.prompt, skip_special_tokens=True)) :]

    def _probabilities(self, n: int) -> list[float]:
        head = self.ours.files[n].head
        assert head is not None
        hidden = self.model(input_ids=self.ids, attention_mask=torch.ones_like(self.ids))
        pooled: Tensor = hidden.last_hidden_state.mean(1)
        logits = pooled @ head.weight_CH.T + head.bias_C
        found: list[float] = logits[0].double().softmax(0).tolist()
        return found


def check_equal(arms: dict[str, Callable[[], Said]], case: Case) -> None:
    expected = arms["mixed"]()
    assert len(expected) == case.num_adapters
    if not case.labels:
        assert len(set(expected)) > 1, "every adapter says the same; nothing is compared"
    for name, arm in arms.items():
        found = arm()
        same = (
            all(
                max(abs(a - b) for a, b in zip(one, other, strict=True)) < 1e-5
                for one, other in zip(found, expected, strict=True)
            )
            if case.labels
            else found == expected
        )
        assert same, f"{name} says something else than mixed"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--task", default="causal-lm", choices=["causal-lm", "classification"])
    parser.add_argument("--modules", nargs="+", default=["q_proj", "v_proj"])
    parser.add_argument("--adapters", type=int, default=16)
    parser.add_argument("--prompt-tokens", type=int, default=12)
    parser.add_argument("--vocabulary", type=int, default=500, help="Token ids are below it.")
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config = ModelConfig(name=arguments.model, task=arguments.task, device="cpu")
    generator = torch.Generator().manual_seed(arguments.seed)
    labels = ("a", "b", "c", "d") if arguments.task == "classification" else ()
    case = Case(
        config=config,
        modules=tuple(arguments.modules),
        num_adapters=arguments.adapters,
        prompt=torch.randint(
            5, arguments.vocabulary, (arguments.prompt_tokens,), generator=generator
        ).tolist(),
        new_tokens=arguments.new_tokens,
        labels=labels,
    )
    with tempfile.TemporaryDirectory() as scratch:
        paths = write_exports(case, Path(scratch))
        ours = Ours(case, paths)
        arms: dict[str, Callable[[], Said]] = {
            "mixed": ours.mixed,
            "swap": ours.swap,
            "reload": ours.reload,
            "peft": Peft(case, paths, ours).swap,
        }
        check_equal(arms, case)
        timings = run_interleaved(
            arms, num_blocks=arguments.blocks, num_warmup_blocks=1, seed=arguments.seed
        )
    measured: dict[Quantity, Mapping[str, list[float]]] = {
        "seconds": timings.seconds,
        "cpu_seconds": timings.cpu_seconds,
    }
    ratios = [
        paired_ratio(quantity, (name, "mixed"), of[name], of["mixed"]).model_dump()
        for quantity, of in measured.items()
        for name in ("swap", "reload", "peft")
    ]
    result = {
        "arguments": {name: str(value) for name, value in vars(arguments).items()},
        "seconds": timings.seconds,
        "cpu_seconds": timings.cpu_seconds,
        "ratios": ratios,
        "hardware": hardware(torch.device("cpu")),
        "versions": versions(["torch", "transformers", "peft"]),
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for name, seconds in timings.seconds.items():
        print(f"{name:8s} {sorted(seconds)[len(seconds) // 2]:8.3f} s")
    for ratio in ratios:
        interval = "" if ratio["low"] is None else f" [{ratio['low']:.2f}, {ratio['high']:.2f}]"
        print(f"{ratio['quantity']}: {ratio['numerator']} / mixed {ratio['median']:.2f}{interval}")


if __name__ == "__main__":
    main()
