"""A successor in the files that are served, and the proof that peft reads the same model there."""

import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from fedpeft.adapters.peft_files import load_tensors
from fedpeft.errors import VerificationError
from fedpeft.federated.adapted_model import AdaptedModel
from fedpeft.federated.export import HEAD_FILE, export_adapter
from fedpeft.models.dataset import Dataset, collate, physical_batches
from fedpeft.models.model_config import ModelConfig
from fedpeft.models.tasks import BASE, CausalLanguageModel, SequenceClassifier
from fedpeft.registry.fingerprint import Fingerprint, fingerprint
from fedpeft.unlearning.low_rank_edit import Successor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TOLERANCE = 1e-4
"""Nats, or that part of a loss: sums in another order differ by less."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A successor as it was written and read again.

    Attributes:
        tensors: Adapter and head, as read from the files.
        files: Name → content.
        fingerprint: Of the outputs that peft computes from the files.
    """

    tensors: dict[str, Tensor]
    files: dict[str, bytes]
    fingerprint: Fingerprint


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What is the same for every version.

    Attributes:
        load_base: Loads the base model anew.
        model: Its configuration.
        labels: In class order; empty for a language model.
        tokenizer: Of the base model.
    """

    load_base: Callable[[], nn.Module]
    model: ModelConfig
    labels: tuple[str, ...]
    tokenizer: "PreTrainedTokenizerBase"


def export_and_reload(successor: Successor, frame: Frame, rows: Sequence[Dataset]) -> Exported:
    """Writes a successor in PEFT format, reads it again with peft, and compares.

    Args:
        successor: What a method made.
        frame: The base model and what belongs to it.
        rows: On which the two are compared.

    Raises:
        AdapterError: If the tensors do not fit the model, or are not finite.
        VerificationError: If what peft reads computes other losses.
    """
    model = AdaptedModel(
        frame.load_base(),
        frame.model,
        successor.config,
        num_classes=len(frame.labels),
        seed=0,
    )
    model.load(successor.tensors)
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        export_adapter(directory, model, successor.tensors, frame.model, frame.labels)
        tensors = model.method.import_peft(directory, successor.config, prefix=BASE)
        if (directory / HEAD_FILE).exists():
            tensors |= load_tensors(directory / HEAD_FILE)
        reloaded = _by_peft(directory, frame, model.device)
        files = {path.name: path.read_bytes() for path in sorted(directory.iterdir())}
    for dataset in rows:
        ours, theirs = (
            _losses(each, dataset, frame.model.max_tokens_per_batch)
            for each in (model.task_model, reloaded)
        )
        # Written so that NaN on either side is a difference.
        if not (np.abs(ours - theirs) <= _TOLERANCE * np.maximum(1.0, np.abs(ours))).all():
            raise VerificationError(
                "the successor reloaded by peft computes other losses, by "
                f"{float(np.abs(ours - theirs).max()):.2g}: what was exported is not what was made"
            )
    return Exported(tensors=tensors, files=files, fingerprint=outputs(reloaded, frame))


def outputs(model: SequenceClassifier | CausalLanguageModel, frame: Frame) -> Fingerprint:
    """Returns the fingerprint of a model, its adapter merged or not."""
    is_causal = isinstance(model, CausalLanguageModel)

    def logits_of(rows: list[list[int]]) -> list[Tensor]:
        device = next(model.parameters()).device
        found = []
        with torch.inference_mode():
            for ids in rows:
                row = Dataset(input_ids=[ids], targets=[1 if is_causal else 0], pad_id=0)
                found.append(model.logits(collate(row, [0], device))[0])
        return found

    return fingerprint(logits_of, frame.tokenizer, causal=is_causal)


def _by_peft(
    directory: Path, frame: Frame, device: torch.device
) -> SequenceClassifier | CausalLanguageModel:
    """None of our injection code takes part."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers the old way
        peft_model = PeftModel.from_pretrained(frame.load_base(), str(directory))
    model: SequenceClassifier | CausalLanguageModel
    if frame.labels:
        model = SequenceClassifier(peft_model, len(frame.labels))
        head = load_tensors(directory / HEAD_FILE)
        model.head.load_state_dict({name.removeprefix("head."): t for name, t in head.items()})
    else:
        model = CausalLanguageModel(peft_model)
    return model.eval().to(device)


def _losses(
    model: SequenceClassifier | CausalLanguageModel, dataset: Dataset, max_tokens: int
) -> np.ndarray:
    losses = np.zeros(len(dataset))
    device = next(model.parameters()).device
    with torch.inference_mode():
        for rows in physical_batches(dataset, range(len(dataset)), max_tokens, device):
            losses[rows] = model.losses(collate(dataset, rows, device)).double().cpu().numpy()
    return losses
