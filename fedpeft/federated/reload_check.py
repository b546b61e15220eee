"""Loads an exported adapter with the peft library and scores it: `python -m … REQUEST ANSWER`.

Runs in a process of its own. None of our injection code takes part, only peft's.
"""

import json
import sys
from pathlib import Path

import torch
from peft import PeftModel

from fedpeft.adapters.peft_files import load_tensors
from fedpeft.federated.assembly import encode, needed_columns
from fedpeft.federated.export import HEAD_FILE
from fedpeft.models.base_model import load_base_model, load_tokenizer
from fedpeft.models.data_config import DataConfig
from fedpeft.models.evaluation import evaluate
from fedpeft.models.held_out import read_train_and_test
from fedpeft.models.label_space import LabelSpace
from fedpeft.models.model_config import ModelConfig
from fedpeft.models.tasks import CausalLanguageModel, SequenceClassifier


def main(request_path: Path, answer_path: Path) -> None:
    """Answers one request of `export.reload_and_score`."""
    request = json.loads(request_path.read_text(encoding="utf-8"))
    config = ModelConfig(**request["model"])
    data = DataConfig(**request["data"])
    labels = LabelSpace(tuple(request["labels"])) if request["labels"] else None
    directory = Path(request["adapter"])
    peft_model = PeftModel.from_pretrained(load_base_model(config), str(directory))
    task_model: SequenceClassifier | CausalLanguageModel
    if labels is None:
        task_model = CausalLanguageModel(peft_model)
    else:
        task_model = SequenceClassifier(peft_model, len(labels.names))
        head = load_tensors(directory / HEAD_FILE)
        task_model.head.load_state_dict({n.removeprefix("head."): t for n, t in head.items()})
    cuda = config.device != "cpu" and torch.cuda.is_available()
    task_model.eval().to("cuda" if cuda else "cpu")
    columns = needed_columns(config, data)
    _, rows = read_train_and_test(data, columns, [], request["seed"])
    test = encode(rows, config, data, labels, load_tokenizer(config))
    metrics = evaluate(task_model, test, task=config.task, max_tokens=config.max_tokens_per_batch)
    answer_path.write_text(json.dumps(metrics), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
