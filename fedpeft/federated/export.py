"""The finished adapter on disk, and the proof that it works there.

The peft library, in another process that shares no memory with the run, loads what was written and
scores it again.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from fedpeft.errors import VerificationError
from fedpeft.federated.adapted_model import AdaptedModel, adapter_tensors, head_tensors
from fedpeft.files import write_text
from fedpeft.models.data_config import DataConfig
from fedpeft.models.model_config import ModelConfig
from fedpeft.models.tasks import BASE

HEAD_FILE = "head.safetensors"
MANIFEST_FILE = "fedpeft.json"
TASK_TYPES = {"classification": "FEATURE_EXTRACTION", "causal-lm": "CAUSAL_LM"}
# Another batch order sums in another order; what is larger than this is another model.
_TOLERANCE = 1e-4


def export_adapter(
    directory: Path,
    model: AdaptedModel,
    tensors: Mapping[str, Tensor],
    model_config: ModelConfig,
    labels: tuple[str, ...],
) -> None:
    """Writes the adapter in PEFT format, the head beside it, and what their user must know."""
    model.method.export_peft(
        model.task_model,
        adapter_tensors(tensors),
        model.adapter_config,
        directory,
        base_model=model_config.name,
        task_type=TASK_TYPES[model_config.task],
        prefix=BASE,
    )
    head = head_tensors(tensors)
    if head:
        save_file(head, directory / HEAD_FILE)
    manifest = {
        "base_model": model_config.name,
        "task": model_config.task,
        "labels": list(labels),
        "pooling": "mean" if head else None,
        "max_length": model_config.max_length,
    }
    write_text(directory / MANIFEST_FILE, json.dumps(manifest, indent=2) + "\n")


def reload_and_score(
    directory: Path,
    model_config: ModelConfig,
    data: DataConfig,
    labels: tuple[str, ...],
    *,
    seed: int,
) -> dict[str, float]:
    """Scores the exported adapter on the held-out set, with peft, in a process of its own.

    Raises:
        VerificationError: If that process fails; the message ends with what it said.
    """
    with tempfile.TemporaryDirectory() as scratch:
        request, answer = Path(scratch, "request.json"), Path(scratch, "answer.json")
        request.write_text(
            json.dumps(
                {
                    "adapter": str(directory),
                    "model": model_config.model_dump(),
                    "data": data.model_dump(),
                    "labels": labels,
                    "seed": seed,
                }
            ),
            encoding="utf-8",
        )
        command = [
            sys.executable,
            "-m",
            "fedpeft.federated.reload_check",
            str(request),
            str(answer),
        ]
        # In a session of its own, so that Ctrl-C, which asks this process to stop, does not end it.
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, start_new_session=True
        )
        if done.returncode != 0:
            raise VerificationError(
                f"the exported adapter {directory} could not be loaded and scored again: "
                f"{done.stderr.strip()[-2000:]}"
            )
        metrics: dict[str, float] = json.loads(answer.read_text(encoding="utf-8"))
    return metrics


def compare_metrics(expected: Mapping[str, float], found: Mapping[str, float]) -> float:
    """Returns the largest difference between the two scores of one adapter.

    Raises:
        VerificationError: If they are not the same metrics, or differ by more than rounding.
    """
    if expected.keys() != found.keys():
        raise VerificationError(f"expected metrics {sorted(expected)}, got {sorted(found)}")
    for name, value in expected.items():
        # Written so that NaN on either side is a difference.
        if not abs(value - found[name]) <= _TOLERANCE * max(1.0, abs(value)):
            raise VerificationError(
                f"the adapter reloaded from disk scores {name} {found[name]:.6f}, the run ended "
                f"with {value:.6f}: what was exported is not what was trained"
            )
    return max(abs(value - found[name]) for name, value in expected.items())
